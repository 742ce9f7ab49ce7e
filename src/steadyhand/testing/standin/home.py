"""The config directory: agent definitions and the records of sessions."""

from __future__ import annotations

import json
import os

from . import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

BUILT_IN = ("claude", "Explore", "general-purpose", "Plan", "statusline-setup")


def config_dir() -> str:
    """Return ``CLAUDE_CONFIG_DIR``, or ``.claude`` in the home directory."""
    return os.environ.get("CLAUDE_CONFIG_DIR") or os.path.join(os.environ.get("HOME", "/"), ".claude")


def list_agents(from_command_line: str | None, sources: str | None) -> list[dict[str, str]]:
    """Return the available agents: built-ins, the config directory's, the repository's, and those of ``--agents``.

    ``sources`` is the value of ``--setting-sources``; without ``project`` in it the repository's are left out.
    """
    agents = [{"name": name, "description": f"The built-in agent {name}."} for name in BUILT_IN]
    folders = [os.path.join(config_dir(), "agents")]
    if sources is None or "project" in sources.split(","):
        folders.append(os.path.join(".claude", "agents"))
    for folder in folders:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        for name in names:
            agent = _read_agent(os.path.join(folder, name)) if name.endswith(".md") else None
            if agent:
                agents.append(agent)
    if from_command_line:
        text = from_command_line if from_command_line.lstrip().startswith("{") else _text(from_command_line)
        agents += [_describe(name, definition) for name, definition in json.loads(text).items()]
    return agents


def _describe(name: str, about: dict[str, Any]) -> dict[str, str]:
    agent = {"name": name, "description": str(about.get("description", ""))}
    if about.get("model"):
        agent["model"] = str(about["model"])
    return agent


def _read_agent(path: str) -> dict[str, str] | None:
    """Read an agent from its file; the name is the frontmatter's, and without frontmatter it is no agent."""
    lines = _text(path).split("\n")
    if not lines or lines[0].strip() != "---":
        return None
    about = {}
    for line in lines[1:]:
        if line.strip() == "---":
            break
        key, colon, value = line.partition(":")
        if colon:
            about[key.strip()] = value.strip().strip("\"'")
    return _describe(about["name"], about) if about.get("name") else None


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="replace") as source:
        return source.read()


class Session:
    """The record of one session, a line for each turn, where the real one keeps it."""

    def __init__(self, ident: str, *, keep: bool) -> None:
        self.id = ident
        slug = "".join(c if c.isalnum() else "-" for c in os.getcwd())
        self.path = os.path.join(config_dir(), "projects", slug, ident + ".jsonl")
        self._parent: str | None = None
        self._keep = keep

    @property
    def keeps(self) -> bool:
        """Return True if the session is recorded."""
        return self._keep

    @property
    def exists(self) -> bool:
        """Return True if the session has been recorded before."""
        return os.path.exists(self.path)

    def turns(self) -> list[tuple[str, str]]:
        """Return the earlier turns as pairs of role and text, without those that were taken back."""
        found: list[tuple[str, str, str]] = []
        for line in _text(self.path).split("\n")[:-1]:
            entry = json.loads(line)
            if entry.get("type") in ("user", "assistant"):
                found.append((entry["uuid"], entry["type"], text_of(entry["message"].get("content"))))
            elif "cutUuid" in entry:
                found = found[: [ident for ident, _, _ in found].index(entry["cutUuid"])]
        self._parent = found[-1][0] if found else None
        return [(role, text) for _, role, text in found]

    def record(self, role: str, content: Any, message_id: str | None = None) -> str:
        """Record one message and return its id; ignore a config directory that cannot be written to."""
        ident = message_id or frames.new_uuid()
        entry = {
            "parentUuid": self._parent,
            "isSidechain": False,
            "type": role,
            "message": {"role": role, "content": content},
            "uuid": ident,
            "timestamp": frames.now(),
            "userType": "external",
            "cwd": os.getcwd(),
            "sessionId": self.id,
            "version": frames.VERSION,
        }
        self._write(entry)
        self._parent = ident
        return ident

    def cut(self, message_id: str, text: str) -> None:
        """Record that a message with this text and all after it are taken back."""
        entry = {
            "type": "last-prompt",
            "lastPrompt": text,
            "leafUuid": None,
            "explicit": True,
            "rewound": True,
        }
        self._write({**entry, "cutUuid": message_id, "sessionId": self.id})

    def _write(self, entry: dict[str, Any]) -> None:
        if not self._keep:
            return
        try:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as record:
                record.write(json.dumps(entry, separators=(",", ":")) + "\n")
        except OSError:
            self._keep = False


def text_of(content: Any) -> str:
    """Return the text of a message's content, a string or a list of blocks."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(block["text"] for block in content if block.get("type") == "text")
    return ""
