"""The OpenAPI document without its prose: the part of it that a client is generated from.

Run as a program, it starts the code that its interpreter has installed and writes the snapshots of both profiles:

    .venv/bin/python tests/compat/document.py tests/compat/openapi

The snapshots in the repository were written so, by the code as it was before its parts were renamed.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from steadyhand.testing.cli import install_standin
from steadyhand.testing.service import Service

PROFILES = ("default", "classic")
PROSE = frozenset({"title", "summary", "description", "example", "examples"})
NAMED = frozenset(
    {
        *("paths", "properties", "patternProperties", "$defs", "dependentSchemas", "schemas", "responses"),
        *(
            "requestBodies",
            "headers",
            "links",
            "securitySchemes",
            "content",
            "callbacks",
            "encoding",
            "mapping",
        ),
    }
)
"""Keywords whose value is a map from names that somebody chose: such a name is not prose, even `title`."""
VALUES = frozenset({"default", "const", "enum", "required"})
"""Keywords whose value is data."""


def without_prose(node: Any) -> Any:
    """Return the document, or a part of it, without titles, summaries, descriptions and examples."""
    if isinstance(node, list):
        return [without_prose(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    return {key: _kept(key, value) for key, value in node.items() if key not in PROSE}


def _kept(key: str, value: Any) -> Any:
    if key in VALUES:
        return value
    # The `parameters` of a link are a map; those of a path or an operation are a list.
    if isinstance(value, Mapping) and (key in NAMED or key == "parameters"):
        return {name: without_prose(each) for name, each in value.items()}
    return without_prose(value)


def served(service: Service) -> dict[str, Any]:
    """Return the document that a running service serves, without prose and without its release."""
    answer = service.client.get("/openapi.json")
    if answer.status_code != 200:
        raise RuntimeError(answer.text)
    document: dict[str, Any] = without_prose(answer.json())
    del document["info"]["version"]
    return document


@contextmanager
def service_of(profile: str, root: Path, claude: Path) -> Iterator[Service]:
    """Start a service of this profile in `root`, without a sandbox: the document does not depend on one."""
    env = {"STEADYHAND_ISOLATION": "none"}
    with Service(root, claude, classic=profile == "classic", env=env) as service:
        yield service


def main(folder: Path) -> None:
    """Write one snapshot for each profile into the folder."""
    folder.mkdir(exist_ok=True)
    for profile in PROFILES:
        with tempfile.TemporaryDirectory(prefix="sh-", dir="/tmp") as name:  # a fresh name
            root = Path(name)
            root.chmod(0o755)
            with service_of(profile, root, install_standin(root / "stand-in")) as service:
                text = json.dumps(served(service), indent=1, sort_keys=True)
        (folder / f"{profile}.json").write_text(text + "\n", "ascii")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
