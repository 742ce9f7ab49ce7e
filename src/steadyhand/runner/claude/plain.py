"""The `plain` mode: the classic command line to the letter, its prompt on stdin, one JSON result on stdout."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steadyhand.events import Message
from steadyhand.outcome import Result
from steadyhand.ports import Command, Emit, Report, RunSpec, Sandbox, StopSignal
from steadyhand.redact import Redactor
from steadyhand.runner.claude.argv import appended, options
from steadyhand.runner.claude.messages import read_result, usage_event
from steadyhand.runner.output import Spool, parse
from steadyhand.runner.process.agent_process import AgentProcess, Launch
from steadyhand.runner.process.run_loop import (
    Drive,
    budget_text,
    environment,
    goes_on,
    said,
    scratch,
    session_of,
)

_TEXT_KEYS = ("result", "content", "text")


def arguments(cli: Path, spec: RunSpec, prompt_file: Path | None = None) -> list[str]:
    """Give the command line that the earlier service ran, and after it what a job or its agent's profile asks for.

    The built-in chat is a profile of ours, which the CLI knows no agent for.
    """
    argv = [str(cli), "-p", *([] if spec.agent.lean else ["--agent", spec.job.agent])]
    argv += ["--dangerously-skip-permissions", "--max-budget-usd", budget_text(spec.job.budget_micros)]
    return [*argv, "--output-format", "json", *options(spec, prompt_file)]


class PlainRunner:
    """Runs agents by the classic command line; implements `ports.Runner`."""

    def __init__(self, cli: Path, sandbox: Sandbox, redactor: Redactor | None = None) -> None:
        """Take the CLI, the boundary, and what takes secrets out of all that a run says."""
        self._cli = cli
        self._sandbox = sandbox
        self._redactor = redactor

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> Report:
        """See `ports.Runner.run`."""
        place, view = spec.place, self._sandbox.view(spec.place)
        env = environment(spec.environment, view)
        session = session_of(spec)
        going_on = goes_on(spec, self._sandbox, session)
        more = appended(spec, view)
        argv = arguments(self._cli, spec, None if more is None else more.seen)
        if going_on:
            argv += ["--resume", session]
        command = Command(argv, env, view.directory, place.user)
        folders = [] if place.config is None else [scratch(place.home)]
        files = [] if more is None else [(more.written, more.text)]
        launch = Launch(self._sandbox.wrap(command, place, spec.agent), files=files, folders=folders)
        spool = Spool(place.files.spool(spec.number), self._redactor)
        try:
            async with AgentProcess.start(launch, spec.spawned, spec.listening) as process:
                drive = Drive(spec, emit, stop, process, spool, going_on=going_on)
                mode = _Plain(drive)
                report = await drive.attend(mode)
            return await _completed(report, drive)
        finally:
            spool.close()


class _Plain:
    """A `drive.Mode`: the prompt, end of input, and the line that is the result.

    This command line says nothing until it has ended, however long that takes; its deadline alone bounds it.
    """

    tells = False

    def __init__(self, drive: Drive) -> None:
        self._drive = drive

    async def line(self, line: bytes) -> None:
        message = parse(line) if b'"result"' in line else None
        if message is not None and message["type"] == "result":
            self._drive.answer(read_result(message), line)
        else:
            self._drive.spool.printed(line)

    async def talk(self) -> None:
        prompt = said(self._drive.spec, going_on=self._drive.going_on)
        await self._drive.process.write(prompt.encode())
        self._drive.process.end_input()

    async def interrupt(self) -> None:
        """There is no polite way: this command line reads nothing more."""


async def _completed(report: Report, drive: Drive) -> Report:
    """Add what the whole output says: an answer that is no result object, and the events that there are."""
    evidence = report.evidence
    result = evidence.result
    if result is None and evidence.exit_code == 0 and evidence.stop is None:
        result = answer_in(drive.spool.printed_text())
    if result is None:
        return report
    if result.text and not result.is_error:
        await drive.emit(Message("assistant", result.text))
    if result.usage is not None:
        await drive.emit(usage_event(result.usage, result.cost_micros))
    return replace(report, evidence=replace(evidence, result=result))


def answer_in(printed: str) -> Result | None:
    """Give the answer in an output without a result line, as the earlier service did; null when there is none.

    A JSON object's answer is the first non-empty string among `result`, `content` and `text` (or it is a result
    object over many lines); what is not JSON is its own answer, unless it is the beginning of an object only.
    """
    text = printed.strip()
    if not text:
        return None
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        is_torn = text.startswith('{"')
        return None if is_torn else Result("success", is_error=False, text=text)
    if isinstance(value, dict):
        if value.get("type") == "result":
            return read_result(value)
        return _first_text([value.get(key) for key in _TEXT_KEYS])
    return Result("success", is_error=False, text=text)


def _first_text(candidates: Sequence[Any]) -> Result | None:
    for each in candidates:
        if isinstance(each, str) and each.strip():
            return Result("success", is_error=False, text=each)
    return None
