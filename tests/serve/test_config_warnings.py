"""Settings that are valid, but do not do what they seem to do: the start and `doctor` say so."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

from steadyhand.config.settings import Settings, load_settings
from steadyhand.redact import Redactor
from steadyhand.serve.config_warnings import check_config, log_config_warnings
from steadyhand.serve.logs import configure_logging

QUESTIONABLE = """\
[agents.reader]
tools = ["Read", "grep", "Bash(git:*)", "Quux"]
secrets = ["{root}/present", "{root}/absent"]
[workspaces.open]
repository = "/srv/open"
trust = "full"
[workspaces.closed]
repository = "/srv/closed"
trust = "full"
trusted_refs = ["main"]
setup_secrets = ["{root}/token"]
[git]
ssh_key_file = "{root}/id"
"""
SOUND = """\
[agents.reader]
tools = ["Read", "Grep"]
secrets = ["{root}/present"]
[agents.any]
tools = ["default"]
[agents.none]
tools = []
"""


def warnings_of(root: Path, text: str, **environ: str) -> tuple[Settings, list[dict[str, Any]]]:
    (root / "present").write_text("a secret")
    file = root / "steadyhand.toml"
    file.write_text(text.replace("{root}", str(root)))
    environ = {"STEADYHAND_DATA_DIR": str(root), "HOME": str(root), **environ}
    settings = load_settings(file, environ=environ)
    stream = io.StringIO()
    configure_logging("info", Redactor([]), stream)
    log_config_warnings(settings)
    return settings, [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_questionable_setting_has_a_line_of_the_log_with_its_remedy(tmp_path: Path) -> None:
    _, lines = warnings_of(tmp_path, QUESTIONABLE)
    assert {(line["event"], line["level"]) for line in lines} == {("config.warning", "warning")}
    assert {(line["setting"], line["remedy"]) for line in lines} == {
        ("agents.reader.secrets", "create it, or remove it from the setting"),
        ("agents.reader.tools", "did you mean Grep?"),
        ("agents.reader.tools", "did you mean Bash?"),
        ("agents.reader.tools", "remove it from the setting"),
        ("workspaces.open.trust", 'set trusted_refs, such as ["main"]'),
        ("workspaces.closed.setup_secrets", "create it, or remove it from the setting"),
        ("git.ssh_key_file", "create it, or remove it from the setting"),
    }
    meanings = " ".join(line["meaning"] for line in lines)
    for name in ("'grep'", "'Quux'", f"{tmp_path}/absent", f"{tmp_path}/token"):
        assert name in meanings


@pytest.mark.parametrize("classic", [False, True])
def test_sound_settings_have_no_warning(tmp_path: Path, *, classic: bool) -> None:
    # The earlier service worked in its directory with full trust.
    environ = {"STEADYHAND_PROFILE": "classic", "WORKSPACE_DIR": str(tmp_path)} if classic else {}
    settings, lines = warnings_of(tmp_path, SOUND, **environ)
    assert (lines, list(check_config(settings))) == ([], [])


def test_doctor_marks_them_as_lacks(tmp_path: Path) -> None:
    settings, _ = warnings_of(tmp_path, QUESTIONABLE)
    checks = check_config(settings)
    # A missing secret has a failed check beside the other grants of its owner.
    assert [check.name for check in checks] == [
        "git.ssh_key_file",
        *["agents.reader.tools"] * 3,
        "workspaces.open.trust",
    ]
    assert all(check.ok and check.warning for check in checks)


@pytest.mark.parametrize(
    ("memory", "agents", "meaning", "remedy"),
    [
        ("50M", "[agents.chat]\nwarm = 1\n", "has no room for a process", "at least 100M"),
        ("50M", '[agents.chat]\nwarm = "auto"\n', "has no room for a process", "at least 100M"),
        ("250M", "[agents.chat]\nwarm = 3\n", "has room for 2 of the 3 processes", "at least 300M"),
        (
            "250M",
            "[agents.chat]\nwarm = 2\n[agents.claude]\nwarm = 2\n",
            "has room for 2 of the 4 processes that `warm` of 2 agents asks for",
            "at least 400M",
        ),
    ],
)
def test_too_little_memory_for_processes_that_wait_is_a_warning(
    tmp_path: Path, memory: str, agents: str, meaning: str, remedy: str
) -> None:
    settings, lines = warnings_of(tmp_path, f'[service]\nwarm_memory = "{memory}"\n{agents}')
    assert [line["setting"] for line in lines] == ["service.warm_memory"]
    (check,) = check_config(settings)
    assert (check.ok, check.warning) == (True, True)
    assert meaning in check.detail
    assert remedy in check.detail


def test_enough_memory_for_processes_that_wait_is_no_warning(tmp_path: Path) -> None:
    settings, lines = warnings_of(tmp_path, '[service]\nwarm_memory = "300M"\n[agents.chat]\nwarm = 3\n')
    assert (lines, list(check_config(settings))) == ([], [])


def test_processes_that_wait_in_the_classic_profile_are_a_warning(tmp_path: Path) -> None:
    environ = {"STEADYHAND_PROFILE": "classic", "WORKSPACE_DIR": str(tmp_path)}
    _, lines = warnings_of(tmp_path, "[agents.chat]\nwarm = 1\n", **environ)
    assert [(line["setting"], line["remedy"]) for line in lines] == [
        ("agents.chat.warm", "remove it, or use the default profile")
    ]
