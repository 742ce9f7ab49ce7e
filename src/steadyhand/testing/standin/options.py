"""The command line, parsed as the real one parses it."""

from __future__ import annotations

_SINGLE_VALUE_OPTIONS = frozenset(
    """
--agent --agents --append-system-prompt --append-system-prompt-file --autocompact --debug-file --effort --fallback-model
--input-format --json-schema --max-budget-usd --max-turns --max-thinking-tokens --model --name --output-format
--permission-mode --permission-prompt-tool --permission-prompts --plugin-dir --session-id --setting-sources --settings
--system-prompt --system-prompt-file --system-prompt-snapshot --resume
""".split()  # noqa: SIM905 - read more easily than a list of thirty strings
)
_LIST_OPTIONS = frozenset(
    """
--add-dir --allowedTools --allowed-tools --betas --disallowedTools --disallowed-tools --file --mcp-config --tools
""".split()  # noqa: SIM905 - as above
)
_FLAGS = frozenset(
    """
--allow-dangerously-skip-permissions --bare --brief --continue --dangerously-skip-permissions --debug
--disable-slash-commands --exclude-dynamic-system-prompt-sections --fork-session --forward-subagent-text --ide
--include-hook-events --include-partial-messages --no-chrome --no-session-persistence --print --replay-user-messages
--restricted --safe-mode --strict-mcp-config --verbose --version
""".split()  # noqa: SIM905 - as above
)
_SHORT_NAMES = {
    "-p": "--print",
    "-c": "--continue",
    "-r": "--resume",
    "-d": "--debug",
    "-n": "--name",
    "-v": "--version",
}
_FORMATS = {"--output-format": ("text", "json", "stream-json"), "--input-format": ("text", "stream-json")}
_HEX = "0123456789abcdef"


class UsageError(Exception):
    """The command line is wrong; the text goes to stderr and the exit code is 1."""


class Options:
    """The parsed command line; ``prompt`` is the positional argument or nothing."""

    def __init__(self, argv: list[str]) -> None:
        self.values: dict[str, str] = {}
        self.flags: set[str] = set()
        self.prompt = ""
        self._read(argv)
        self._check()

    def get(self, name: str) -> str | None:
        """Return the value of an option, or None if it is absent."""
        return self.values.get(name)

    @property
    def reads_stream(self) -> bool:
        """True if stdin brings JSON lines."""
        return self.get("--input-format") == "stream-json"

    @property
    def output_format(self) -> str:
        """text, json or stream-json."""
        return self.values.get("--output-format", "text")

    @property
    def include_partial(self) -> bool:
        """True if pieces of messages are wanted as they come."""
        return "--include-partial-messages" in self.flags

    def _read(self, argv: list[str]) -> None:
        words = list(argv)
        while words:
            word = words.pop(0)
            name, has_value, value = word.partition("=") if word.startswith("--") else (word, "", "")
            name = _SHORT_NAMES.get(name, name)
            if name in _FLAGS:
                self.flags.add(name)
            elif name in _SINGLE_VALUE_OPTIONS:
                if not has_value and not words:
                    raise UsageError(f"error: option '{name} <value>' argument missing")
                self.values[name] = value if has_value else words.pop(0)
            elif name in _LIST_OPTIONS:
                consumed = [value] if has_value else []
                while not has_value and words and not words[0].startswith("-"):
                    consumed.append(words.pop(0))
                self.values[name] = ",".join(consumed)
            elif name.startswith("-") and name != "-":
                raise UsageError(f"error: unknown option '{word}'")
            else:
                self.prompt = self.prompt or word

    def _check(self) -> None:
        for name, choices in _FORMATS.items():
            value = self.get(name)
            if value is not None and value not in choices:
                allowed = ", ".join(choices)
                bad = f"error: option '{name} <format>' argument '{value}' is invalid."
                raise UsageError(f"{bad} Allowed choices are {allowed}.")
        self._check_numbers()
        session = self.get("--session-id")
        if session is not None and not is_uuid(session):
            raise UsageError("Error: Invalid session ID. Must be a valid UUID.")
        if self.reads_stream and self.output_format != "stream-json":
            raise UsageError("Error: --input-format=stream-json requires output-format=stream-json.")
        if self.output_format == "stream-json" and "--verbose" not in self.flags:
            raise UsageError("Error: When using --print, --output-format=stream-json requires --verbose")
        for source in (self.get("--setting-sources") or "").split(","):
            if source and source not in ("user", "project", "local"):
                wrong = f"Invalid setting source: {source}. Valid options are: user, project, local"
                raise UsageError(f"Error processing --setting-sources: {wrong}")

    def _check_numbers(self) -> None:
        budget = self.get("--max-budget-usd")
        if budget is not None and not _is_positive(budget):
            bad = f"error: option '--max-budget-usd <amount>' argument '{budget}' is invalid."
            raise UsageError(f"{bad} --max-budget-usd must be a number greater than 0")
        turns = self.get("--max-turns")
        if turns is not None and not turns.isdigit():
            raise UsageError(
                f"error: option '--max-turns <turns>' argument '{turns}' is invalid. must be a number"
            )


def is_uuid(text: str) -> bool:
    """Return whether the text is a UUID as the command line wants it."""
    parts = text.lower().split("-")
    return [len(part) for part in parts] == [8, 4, 4, 4, 12] and all(
        c in _HEX for part in parts for c in part
    )


def _is_positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
