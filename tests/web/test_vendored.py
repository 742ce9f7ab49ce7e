"""The vendored files of the browser are those that their page names, each with its license."""

import hashlib
import re
from pathlib import Path

VENDOR = Path(__file__).parents[2] / "src/steadyhand/web/static/vendor"
TOOL = Path(__file__).parents[2] / "tools/vendor.sh"
_ROW = re.compile(r"^\| ([\w.-]+) \| ([\w.-]+) \| ([\d.]+) \| ([\w.-]+) \| ([0-9a-f]{64}) \|$", re.MULTILINE)


def test_each_file_is_named_with_its_digest_and_its_license_is_there() -> None:
    rows = _ROW.findall((VENDOR / "VENDORED.md").read_text("utf-8"))
    licenses = {license_file for _, _, _, license_file, _ in rows}
    assert {path.name for path in VENDOR.iterdir()} == {name for name, *_ in rows} | licenses | {
        "VENDORED.md"
    }
    for name, package, version, _, digest in rows:
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest
        assert f"take {package} {version} " in TOOL.read_text("utf-8")


def test_no_file_of_the_page_names_another_host() -> None:
    folder = VENDOR.parents[1]
    for path in (*folder.rglob("*.html"), *folder.rglob("*.css"), *VENDOR.parent.glob("*.js")):
        assert (
            re.findall(r"""(?:src|href|url\(|import)\W{0,3}(?:https?:)?//""", path.read_text("utf-8")) == []
        ), path
