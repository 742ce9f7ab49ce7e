"""Prompts that begin with a slash: text, or a command that the job's repository or agent defines. Pure.

The CLI takes such a prompt for a command of its own if it has one of that name, listed or not. The model then never
reads it.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

UNLISTED = frozenset(
    """
    access add-dir advisor allowed-tools android app artifacts autofix-pr background bashes bg branch break-reminder
    breaks brief btw bug cd checkpoint chrome cloud-plugins continue copy cost design-consent design-login design-revoke
    desktop diff downtime exit export extra-usage feedback fork help hooks ide import install-github-app
    install-slack-app ios keybindings keybindings-help login logout marketplace memory memory-pause mobile name passes
    pause-memory peers permissions plan plugin plugins powerup privacy-settings pro-trial-expired project quit radio
    rate-limit-options rc release-notes remote remote-control remote-env restart resume rewind routines sandbox schedule
    scroll-speed session setup-bedrock setup-vertex share skills stats status statusline stickers stop subtask tasks
    teleport terminal-setup theme toggle-memory tp tui ultraplan ultrareview undo update upgrade usage-credits use-case
    voice web-setup wellbeing workflows
    """.split()  # noqa: SIM905  # read more easily than a list of strings
)
"""Names of the CLI's own commands that it takes and does not list (2.1.330)."""
_SLASH_NAME = re.compile(r"/(\S+)")
_OWN_NAME = re.compile(r"[a-z][a-z0-9-]*")


class SlashCommands(NamedTuple):
    """The names that the CLI lists: its own, and those that the repository or the agent defines."""

    built_in: frozenset[str]
    defined: frozenset[str]


def parse_commands(server_info: Mapping[str, Any] | None) -> SlashCommands:
    """Parse the CLI's answer to `initialize`; a command of a wrong shape is skipped."""
    commands = (server_info or {}).get("commands")
    listed = [each for each in commands if isinstance(each, dict)] if isinstance(commands, list) else []
    return SlashCommands(
        frozenset(name for each in listed if each.get("builtin") is True for name in _names(each)),
        frozenset(name for each in listed if each.get("builtin") is not True for name in _names(each)),
    )


def _names(command: Mapping[str, Any]) -> Iterator[str]:
    aliases = command.get("aliases")
    for name in (command.get("name"), *(aliases if isinstance(aliases, list) else ())):
        if isinstance(name, str):
            yield name


def is_built_in(prompt: str, commands: SlashCommands) -> bool:
    """Return True if the CLI could take a prompt for a command of its own.

    A name that it does not list may be one of a later release. A prompt with such a name is left alone only if it may
    have an `@path`, which a verbatim message would not have.
    """
    match = _SLASH_NAME.match(prompt)
    if match is None or match[1] in commands.defined:
        return False
    name = match[1]
    if name in commands.built_in or name in UNLISTED:
        return True
    return "@" not in prompt and _OWN_NAME.fullmatch(name) is not None
