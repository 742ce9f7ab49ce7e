"""The `plain` mode: the classic command line to the letter, its prompt on stdin, one JSON result on stdout."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from steadyhand.agents import CHAT_AGENT
from steadyhand.events import Message
from steadyhand.job import OutcomeType
from steadyhand.outcome import AgentResult
from steadyhand.ports import Command, Emit, RunReport, RunSpec, Sandbox, StopSignal
from steadyhand.redact import Redactor
from steadyhand.runner.claude.argv import common_options, format_budget, system_prompt_file
from steadyhand.runner.claude.environment import agent_environment, temp_dir
from steadyhand.runner.claude.lean_context import STATIC_SYSTEM_PROMPT
from steadyhand.runner.claude.messages import parse_result, usage_event
from steadyhand.runner.claude.session import resumes_session, session_id_for
from steadyhand.runner.claude.session_cost import read_carried_micros
from steadyhand.runner.process.agent_process import AgentProcess, LaunchSpec
from steadyhand.runner.process.output import OutputCapture, parse_message
from steadyhand.runner.process.run_loop import RunLoop, prompt_for

_TEXT_KEYS = ("result", "content", "text")


def plain_argv(
    cli: Path, spec: RunSpec, prompt_file: Path | None = None, *, enforce_budget: bool = True
) -> list[str]:
    """Return the command line of the earlier service, followed by the options of a job or its agent's profile.

    The built-in chat is a profile of Steadyhand: the CLI has no agent for it. The budget is left out where the gateway
    holds it: the CLI drops a finished answer that its own figure finds too dear.
    """
    is_built_in_chat = spec.agent.lean and spec.agent.name == CHAT_AGENT
    argv = [str(cli), "-p", *([] if is_built_in_chat else ["--agent", spec.job.agent])]
    argv += ["--dangerously-skip-permissions"]
    argv += ["--max-budget-usd", format_budget(spec.job.budget_micros)] if enforce_budget else []
    argv += ["--output-format", "json", *common_options(spec, prompt_file)]
    return [*argv, STATIC_SYSTEM_PROMPT] if spec.agent.lean else argv


class PlainRunner:
    """Runs agents by the classic command line; implements `ports.Runner`."""

    def __init__(
        self, cli: Path, sandbox: Sandbox, redactor: Redactor, *, enforce_budget: bool = True
    ) -> None:
        """Create a runner with the CLI, the sandbox and the redactor of its output.

        `enforce_budget` is False where the gateway enforces the budget.
        """
        self._cli = cli
        self._enforce_budget = enforce_budget
        self._sandbox = sandbox
        self._redactor = redactor

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """See `ports.Runner.run`."""
        if spec.steers is not None:
            spec.steers.refuse()
        checkout, view = spec.checkout, self._sandbox.agent_paths(spec.checkout)
        env = agent_environment(spec, view)
        session = session_id_for(spec)
        resumed = resumes_session(spec, self._sandbox, session)
        system_prompt = system_prompt_file(spec, view)
        prompt_file = None if system_prompt is None else system_prompt.agent_path
        argv = plain_argv(self._cli, spec, prompt_file, enforce_budget=self._enforce_budget)
        if resumed:
            argv += ["--resume", session]
        needs_socket = spec.model_access is not None and spec.model_access.socket is not None
        command = Command(argv, env, view.directory, checkout.uid, needs_model_socket=needs_socket)
        folders = [] if checkout.config_dir is None else [temp_dir(checkout.home)]
        files = [] if system_prompt is None else [(system_prompt.host_path, system_prompt.content)]
        launch = LaunchSpec(self._sandbox.wrap(command, checkout, spec.agent), files=files, folders=folders)
        carried = read_carried_micros(spec, self._sandbox, session) if resumed else 0
        capture = OutputCapture(checkout.paths.run_output(spec.number), self._redactor)
        try:
            async with AgentProcess.start(launch, spec.on_spawned, spec.on_listening, stop) as process:
                run_loop = RunLoop(spec, emit, stop, process, capture, resumed=resumed)
                protocol = _PlainProtocol(run_loop, carried)
                report = await run_loop.run(protocol)
            return await _complete_report(report, run_loop, carried)
        finally:
            capture.close()


class _PlainProtocol:
    """A `run_loop.AgentProtocol`: the prompt, end of input, and one result line.

    This command line is silent until it has ended, however long that takes; only its deadline bounds it.
    """

    streams_output = False

    def __init__(self, run_loop: RunLoop, carried_micros: int) -> None:
        self._run_loop = run_loop
        self._carried_micros = carried_micros

    async def handle_line(self, line: bytes) -> None:
        message = parse_message(line) if b'"result"' in line else None
        if message is not None and message["type"] == "result":
            self._run_loop.set_result(_without_carried(parse_result(message), self._carried_micros), line)
        else:
            self._run_loop.capture.add_printed(line)

    async def send_input(self) -> None:
        prompt = prompt_for(self._run_loop.spec, resumed=self._run_loop.resumed)
        await self._run_loop.process.write(prompt.encode())
        self._run_loop.process.end_input()

    async def interrupt(self) -> None:
        """There is no polite way: this command line reads nothing more."""


def _without_carried(result: AgentResult, carried_micros: int) -> AgentResult:
    """Return the result with the cost of this run alone; the CLI's figure is the session's."""
    if result.cost_micros is None:
        return result
    return replace(result, cost_micros=max(0, result.cost_micros - carried_micros))


async def _complete_report(report: RunReport, run_loop: RunLoop, carried_micros: int) -> RunReport:
    """Complete the report from the whole output: an answer without a result object, and the events."""
    evidence = report.evidence
    result = evidence.result
    if result is None and evidence.exit_code == 0 and evidence.stop_reason is None:
        result = parse_output(run_loop.capture.printed_text())
        result = None if result is None else _without_carried(result, carried_micros)
    if result is None:
        return report
    if result.text and not result.is_error:
        await run_loop.emit(Message("assistant", result.text))
    if result.usage is not None:
        await run_loop.emit(usage_event(result.usage, result.cost_micros))
    return replace(report, evidence=replace(evidence, result=result))


def parse_output(output: str) -> AgentResult | None:
    """Return the answer in an output without a result line, as the earlier service did, or None.

    A JSON object's answer is the first non-empty string among `result`, `content` and `text` (or it is a result
    object over many lines). Other text is its own answer, unless it is only the beginning of an object.
    """
    text = output.strip()
    if not text:
        return None
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        is_torn = text.startswith('{"')
        return None if is_torn else AgentResult(OutcomeType.SUCCESS, is_error=False, text=text)
    if isinstance(value, dict):
        if value.get("type") == "result":
            return parse_result(value)
        return _first_text_result([value.get(key) for key in _TEXT_KEYS])
    return AgentResult(OutcomeType.SUCCESS, is_error=False, text=text)


def _first_text_result(candidates: Sequence[Any]) -> AgentResult | None:
    for each in candidates:
        if isinstance(each, str) and each.strip():
            return AgentResult(OutcomeType.SUCCESS, is_error=False, text=each)
    return None
