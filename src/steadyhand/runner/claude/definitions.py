"""Agent definitions and skills of the CLI: Markdown files with frontmatter."""

import re
from typing import Any, Literal

import yaml

from steadyhand.agents import NAME_PATTERN, AgentDefinition

SAFE_FRONTMATTER_KEYS = ("name", "description", "tools", "model")
"""Frontmatter keys that a definition keeps below full trust; others could add hooks or servers."""
_SKILL_KEYS = frozenset({"name", "description", "license", "version", "model", "when_to_use"})


def parse_definition(
    stem: str, text: str, *, origin: Literal["workspace", "data_dir"], full_trust: bool = False
) -> AgentDefinition | None:
    """Parse a definition file; return None if it is not one (no frontmatter, or no valid name).

    Below full trust only `SAFE_FRONTMATTER_KEYS` are kept. `stem` is the file's name without `.md`; it is the agent's
    name if the frontmatter has none.
    """
    if not text.startswith("---"):
        return None
    frontmatter, separator, body = text[3:].partition("\n---")
    if not separator:
        return None
    try:
        keys: Any = yaml.safe_load(frontmatter)
    except (yaml.YAMLError, RecursionError):
        return None
    if not isinstance(keys, dict):
        return None
    name = str(keys.get("name") or stem)
    if NAME_PATTERN.fullmatch(name) is None:
        return None
    allowed = {str(k): v for k, v in keys.items() if full_trust or k in SAFE_FRONTMATTER_KEYS}
    allowed["name"] = name
    description = str(keys.get("description") or name)
    allowed["description"] = description
    frontmatter_yaml = yaml.safe_dump(allowed, sort_keys=False, allow_unicode=True)
    prompt = body.partition("\n")[2]
    return AgentDefinition(name, description, f"---\n{frontmatter_yaml}---\n{prompt}", origin)


_FRONTMATTER = re.compile(r"---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


def sanitize_skill(text: str) -> str:
    """Keep only the description in a skill's frontmatter, which could also define hooks."""
    match = _FRONTMATTER.match(text)
    if match is None:
        return text
    try:
        keys = yaml.safe_load(match.group(1))
    except (yaml.YAMLError, RecursionError):
        keys = None
    allowed_keys = {k: v for k, v in keys.items() if k in _SKILL_KEYS} if isinstance(keys, dict) else {}
    frontmatter = yaml.safe_dump(allowed_keys, sort_keys=False, allow_unicode=True) if allowed_keys else ""
    return f"---\n{frontmatter}---\n{text[match.end() :]}"
