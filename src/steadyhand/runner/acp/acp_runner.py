"""The runner of agents that speak ACP: one process for each run, with one session and one turn in it."""

import asyncio
import importlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steadyhand.errors import SpawnError
from steadyhand.ports import Emit, OrphanedRun, RunReport, RunSpec, Sandbox, StopSignal
from steadyhand.redact import Redactor
from steadyhand.runner.acp.acp_agent import AcpAgent
from steadyhand.runner.acp.acp_launch import build_launch, check_job
from steadyhand.runner.acp.hidden_paths import hide_paths
from steadyhand.runner.process.agent_process import AgentProcess
from steadyhand.runner.process.output import OutputCapture
from steadyhand.runner.process.run_loop import RunLoop
from steadyhand.runner.process.text_prompt import text_prompt

if TYPE_CHECKING:
    from steadyhand.runner.acp.acp_protocol import AcpProtocol


class AcpRunner:
    """Runs one kind of agent by ACP; implements `ports.Runner`."""

    def __init__(
        self, agent: AcpAgent, programs: Sequence[Path], sandbox: Sandbox, redactor: Redactor
    ) -> None:
        """Create a runner. `programs` are the agent's program, after Node if that runs it."""
        self._agent = agent
        self._programs = programs
        self._sandbox = sandbox
        self._redactor = redactor

    async def run(self, spec: RunSpec, emit: Emit, stop: StopSignal) -> RunReport:
        """See `ports.Runner.run`."""
        if spec.steers is not None:
            spec.steers.refuse()
        await asyncio.to_thread(importlib.import_module, _PROTOCOL)  # its models take half a second to load
        if spec.orphan is not None:
            return await self._take_up(spec, spec.orphan, emit, stop)
        check_job(self._agent, spec)
        text_prompt(spec, self._agent.title, resumed=False)  # an empty one starts nothing
        hidden = await asyncio.to_thread(hide_paths, self._agent, spec.checkout, self._sandbox)
        launch = build_launch(self._agent, self._programs, spec, self._sandbox, hidden)
        with self._capture(spec) as capture:
            async with AgentProcess.start(launch, spec.on_spawned, spec.on_listening, stop) as process:
                run_loop = RunLoop(spec, emit, stop, process, capture)
                return await run_loop.run(self._protocol(run_loop))

    async def _take_up(self, spec: RunSpec, orphan: OrphanedRun, emit: Emit, stop: StopSignal) -> RunReport:
        """Go on with a run that an earlier service left."""
        if orphan.sandboxed != (self._sandbox.level != "none"):
            raise SpawnError("The level of isolation is another one.")
        with self._capture(spec) as capture:
            async with AgentProcess.attach(orphan, spec.on_listening) as process:
                run_loop = RunLoop(spec, emit, stop, process, capture)
                return await run_loop.run(self._protocol(run_loop))

    def _capture(self, spec: RunSpec) -> AbstractContextManager[OutputCapture]:
        return closing(OutputCapture(spec.checkout.paths.run_output(spec.number), self._redactor))

    def _protocol(self, run_loop: RunLoop) -> "AcpProtocol":
        from steadyhand.runner.acp.acp_client import SessionRequest  # noqa: PLC0415  # loaded by `run`
        from steadyhand.runner.acp.acp_protocol import AcpProtocol  # noqa: PLC0415  # the same

        spec, agent = run_loop.spec, self._agent
        request = SessionRequest(
            str(self._sandbox.agent_paths(spec.checkout).directory),
            spec.job.begin == "resume",
            spec.job.session_id,
            _session_meta(agent, spec),
        )
        return AcpProtocol(run_loop, agent, request, partial(_prompt, agent, spec))


_PROTOCOL = "steadyhand.runner.acp.acp_protocol"


def _appended(spec: RunSpec) -> str:
    """Return the text that is appended to the system prompt."""
    return "\n\n".join(
        text for text in (spec.agent.append_system_prompt, spec.job.spec.append_system_prompt) if text
    )


def _session_meta(agent: AcpAgent, spec: RunSpec) -> Mapping[str, Any]:
    meta = dict(agent.session_meta if spec.checkout.full_trust else agent.untrusted_meta)
    text = _appended(spec)
    return {**meta, "systemPrompt": {"append": text}} if agent.appends_system_prompt and text else meta


def _prompt(agent: AcpAgent, spec: RunSpec, resumed: bool) -> str:  # noqa: FBT001  # called by position
    text = _appended(spec)
    prompt = text_prompt(spec, agent.title, resumed=resumed)
    return prompt if resumed or agent.appends_system_prompt or not text else f"{text}\n\n{prompt}"
