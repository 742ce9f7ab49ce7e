"""Records golden transcripts anew, from the real CLI against the scripted model.

Run it as `python tests/runner/claude/record_golden.py [CASE ..]`.
Look at the difference before you commit it: it is how an upgrade of the CLI shows what it changed.
"""

import asyncio
import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from steadyhand.events import event_data
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.messages import MessageReader
from steadyhand.runner.claude.runner import ClaudeRunner
from steadyhand.runner.process.output import parse_message
from steadyhand.sandbox.sandbox import NoSandbox
from steadyhand.testing.cli import DUMMY_API_KEY, cli_path
from steadyhand.testing.contracts.runner_harness import RunnerHarness
from steadyhand.testing.model import ScriptedModel

GOLDEN = Path(__file__).parent / "golden"
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["name", "number"],
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "answer": ("[[scenario:ok]] hello", {}),
    "tool": ("[[scenario:bash]] run it", {}),
    "thinking": ("[[scenario:thinking]] think", {}),
    "structured": ("[[scenario:structured]] give it", {"output_schema": SCHEMA}),
    "no-credit": ("[[scenario:no-credit]] hello", {}),
    "max-turns": ("[[scenario:bash]] run it", {"max_turns": 1}),
    "retry": ("[[scenario:overloaded]] hello", {}),
}
SECONDS_PER_LINE = 0.1  # the clock of a replay


def events_of(lines: list[str]) -> list[dict[str, Any]]:
    """Give the events that a transcript means, each line a tenth of a second after the one before."""
    conversation = MessageReader()
    found = []
    for number, line in enumerate(lines):
        message = parse_message(line.encode())
        assert message is not None
        found += [
            {"type": event.type, "data": event_data(event)}
            for event in conversation.feed(message, number * SECONDS_PER_LINE)
        ]
    return found


def _record_case(name: str, world: Path) -> None:
    prompt, fields = CASES[name]
    with ScriptedModel() as model:
        stage = RunnerHarness.make(
            ClaudeRunner(cli_path(), NoSandbox(), NO_REDACTION), world, prompt, **fields
        )
        granted = {"ANTHROPIC_API_KEY": DUMMY_API_KEY, "ANTHROPIC_BASE_URL": model.url}
        stage.spec = replace(stage.spec, environment={**stage.spec.environment, **granted})
        asyncio.run(stage.run())
    files = stage.spec.checkout.paths
    text = (files.run_output(1) / "stdout").read_text(encoding="utf-8")
    lines = [_normalize_line(line) for line in text.replace(str(files.root), "/job").splitlines()]
    kept = [line for line in lines if line]
    folder = GOLDEN / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "transcript.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    events = json.dumps(events_of(kept), indent=1, ensure_ascii=False)
    (folder / "events.json").write_text(events + "\n", encoding="utf-8")


def _normalize_line(line: str) -> str:
    """Leave out the answers to control requests, and of the first message what says much about the CLI alone."""
    message = json.loads(line)
    if message["type"] == "control_response":
        return ""
    if message.get("subtype") == "init":
        kept = ("type", "subtype", "session_id", "cwd", "model", "uuid", "claude_code_version")
        message = {name: message[name] for name in kept}
    return json.dumps(message)


def main() -> None:
    """Record the cases that are named, or all."""
    for name in sys.argv[1:] or CASES:
        world = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
        world.chmod(0o755)
        _record_case(name, world)
        shutil.rmtree(world)


if __name__ == "__main__":
    main()
