"""What can be installed is pinned whole: each package by version and digest, and none by an address."""

import re

import pytest

from steadyhand.errors import InvalidRequest
from steadyhand.runner.packages.installed_tree import is_for_this_machine, this_libc
from steadyhand.runner.packages.package_list import AGENT_PACKAGES, NODE_PACKAGE, all_packages, find_package


@pytest.mark.parametrize("name", AGENT_PACKAGES)
def test_a_lock_has_a_version_and_a_digest_of_each_package_and_no_address(name: str) -> None:
    package = AGENT_PACKAGES[name]
    assert "://" not in package.lock_file.read_text("utf-8")
    entries = package.read_lock()
    assert entries
    for entry in entries.values():
        assert re.fullmatch(r"sha512-[\w+/]{86}==", str(entry["integrity"]))
        assert re.fullmatch(r"\d+\.\d+\.\d+\S*", str(entry["version"]))


@pytest.mark.parametrize("name", AGENT_PACKAGES)
def test_the_program_is_in_a_package_of_the_lock_for_this_machine(name: str) -> None:
    package = AGENT_PACKAGES[name]
    owner = re.match(r"node_modules/(@[^/]+/)?[^/]+", package.program)
    assert owner
    pattern = re.compile(owner[0].replace("*", "[^/]+"))
    [*found] = [path for path, entry in package.read_lock().items() if pattern.fullmatch(path)]
    assert any(is_for_this_machine(package.read_lock()[path], this_libc()) for path in found)


def test_node_is_pinned_by_its_digests() -> None:
    text = NODE_PACKAGE.lock_file.read_text("utf-8")
    assert NODE_PACKAGE.version == "24.19.0"
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}", text)) == text.count("--hash")
    assert "://" not in text


def test_an_unknown_name_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(InvalidRequest, match="there are codex, kimi, opencode, claude-agent-acp, node"):
        find_package("codx", all_packages())
