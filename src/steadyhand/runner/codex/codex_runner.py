"""The runner of Codex: one process of `codex exec` for each run, its prompt on stdin, its events on stdout."""

import asyncio
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from pathlib import Path

from steadyhand.errors import SpawnError
from steadyhand.ports import Emit, OrphanedRun, RunReport, RunSpec, Sandbox, StopSignal
from steadyhand.redact import Redactor
from steadyhand.runner.codex.exec_launch import build_launch
from steadyhand.runner.codex.thread_events import CodexReader
from steadyhand.runner.codex.threads import find_thread
from steadyhand.runner.process.agent_process import AgentProcess
from steadyhand.runner.process.output import OutputCapture, parse_message
from steadyhand.runner.process.run_loop import RunLoop
from steadyhand.runner.process.text_prompt import text_prompt

MAX_CHARACTERS = 1 << 20
"""The characters of a prompt that Codex takes; with more it asks no model (tried with 0.171.0)."""


class CodexRunner:
    """Runs agents by Codex; implements `ports.Runner`."""

    def __init__(self, program: Path, sandbox: Sandbox, redactor: Redactor) -> None:
        """Create a runner with the program, the sandbox and the redactor of its output."""
        self._program = program
        self._sandbox = sandbox
        self._redactor = redactor

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """See `ports.Runner.run`."""
        if spec.steers is not None:
            spec.steers.refuse()
        if spec.orphan is not None:
            return await self._take_up(spec, spec.orphan, emit, stop)
        thread = await asyncio.to_thread(_thread_of, spec)
        prompt = text_prompt(spec, "Codex", resumed=thread is not None, max_characters=MAX_CHARACTERS)
        if spec.hold is not None:
            facts = {**spec.hold.facts, "resumed": thread is not None}
            spec = replace(spec, hold=replace(spec.hold, facts=facts))
        launch = build_launch(self._program, spec, thread, self._sandbox)
        with self._capture(spec) as capture:
            async with AgentProcess.start(launch, spec.on_spawned, spec.on_listening, stop) as process:
                run_loop = RunLoop(spec, emit, stop, process, capture, resumed=thread is not None)
                return await run_loop.run(_CodexProtocol(run_loop, prompt))

    async def _take_up(self, spec: RunSpec, orphan: OrphanedRun, emit: Emit, stop: StopSignal) -> RunReport:
        """Go on with a run that an earlier service left."""
        if orphan.sandboxed != (self._sandbox.level != "none"):
            raise SpawnError("The level of isolation is another one.")
        with self._capture(spec) as capture:
            async with AgentProcess.attach(orphan, spec.on_listening) as process:
                resumed = orphan.facts.get("resumed") is True
                run_loop = RunLoop(spec, emit, stop, process, capture, resumed=resumed)
                return await run_loop.run(_CodexProtocol(run_loop, None))

    def _capture(self, spec: RunSpec) -> AbstractContextManager[OutputCapture]:
        return closing(OutputCapture(spec.checkout.paths.run_output(spec.number), self._redactor))


def _thread_of(spec: RunSpec) -> str | None:
    """Return the thread that a run continues, or None."""
    if spec.job.begin != "resume" or spec.checkout.config_dir is None:
        return None
    return find_thread(spec.checkout.config_dir, spec.job.session_id)


class _CodexProtocol:
    """A `run_loop.AgentProtocol`: the prompt and the end of input, then a line for each event."""

    streams_output = True

    def __init__(self, run_loop: RunLoop, prompt: str | None) -> None:
        """Create it. `prompt` is None for a run that has it already."""
        self._run_loop = run_loop
        self._prompt = prompt
        self._reader = CodexReader(
            run_loop.spec.number, has_schema=run_loop.spec.job.spec.output_schema is not None
        )
        if prompt is None:
            run_loop.keep()

    async def handle_line(self, line: bytes) -> None:
        run_loop, reader = self._run_loop, self._reader
        message = parse_message(line)
        if message is None:
            run_loop.capture.add_printed(line)
            return
        for event in reader.feed(message, asyncio.get_running_loop().time()):
            await run_loop.emit(event)
        run_loop.session_id = reader.thread_id or run_loop.session_id
        if reader.result is not None and reader.result is not run_loop.result:
            run_loop.set_result(reader.result, line)

    async def send_input(self) -> None:
        if self._prompt is None:
            return
        await self._run_loop.process.write(self._prompt.encode())
        self._run_loop.process.end_input()
        self._run_loop.keep()

    async def interrupt(self) -> None:
        """There is no polite way: SIGTERM ends it at once, and its tool with it."""
