"""The protocol of a run over ACP: lines of the agent become events, and one turn is asked for.

Updates and the end of the turn are read here, in their order. The library opens the session, sends the prompt and
answers requests.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from acp import RequestError, schema
from pydantic import ValidationError

from steadyhand.events import WarningEvent
from steadyhand.job import OutcomeType
from steadyhand.job_warnings import WarningCode
from steadyhand.outcome import AgentResult
from steadyhand.runner.acp.acp_agent import AcpAgent
from steadyhand.runner.acp.acp_client import AcpClient, SessionRequest
from steadyhand.runner.acp.acp_transport import AcpTransport, answer_of
from steadyhand.runner.acp.update_reader import UpdateReader
from steadyhand.runner.process.event_limits import as_mapping, as_text, parse_session_id
from steadyhand.runner.process.output import parse_object
from steadyhand.runner.process.run_loop import RunLoop, wait_bounded

CANCEL_SECONDS = 0.7
"""The time in which the agent must end its turn once it is cancelled."""
EXIT_SECONDS = 0.2
"""How long it may then take to leave before it is stopped."""
GIVE_UP_SECONDS = 2.0
"""The time in which the agent may end its turn by itself once its calls of the model keep failing."""
_CALLS_FAIL = "The agent's calls of the model failed again and again."
_ENDS: Mapping[str, OutcomeType] = {
    "end_turn": OutcomeType.SUCCESS,
    "refusal": OutcomeType.SUCCESS,
    "max_turn_requests": OutcomeType.MAX_TURNS,
}
"""The outcome of each reason for the end of a turn; any other is an error."""


@dataclass(frozen=True, slots=True)
class _Turn:
    """The turn of a run: its session, and the ids of its request and of the one before that."""

    session: str
    resumed: bool
    request: int

    def to_note(self) -> str:
        """Return it as a note for a later service."""
        return json.dumps({"session": self.session, "resumed": self.resumed, "request": self.request})

    @classmethod
    def from_note(cls, note: str) -> "_Turn":
        """Return the turn of a note that this service has written."""
        values = json.loads(note)
        return cls(values["session"], values["resumed"], values["request"])


class AcpProtocol:
    """A `run_loop.AgentProtocol`."""

    streams_output = True

    def __init__(
        self,
        run_loop: RunLoop,
        agent: AcpAgent,
        request: SessionRequest,
        prompt_for: Callable[[bool], str],
    ) -> None:
        """Create it. `prompt_for` returns the prompt by whether the session is a stored one."""
        self._run_loop = run_loop
        self._agent = agent
        self._request = request
        self._prompt_for = prompt_for
        self._reader = UpdateReader(run_loop.spec.number)
        hold = run_loop.process.hold
        self._is_taken_up = run_loop.spec.orphan is not None
        answered = hold.noted_replies() if self._is_taken_up else ()
        self._transport = AcpTransport(
            run_loop.process.write, hold.note_reply, run_loop.keep, answered=answered
        )
        self._client: AcpClient | None = None
        self._turn: _Turn | None = None
        self._in_turn = False
        if self._is_taken_up:
            for note in hold.noted_inputs()[:1]:
                self._set_turn(_Turn.from_note(note))
            run_loop.keep()

    def _set_turn(self, turn: _Turn) -> None:
        self._turn = turn
        self._run_loop.resumed = turn.resumed
        self._run_loop.session_id = parse_session_id(turn.session)

    # --- what the agent tells --------------------------------------------------------------------

    async def handle_line(self, line: bytes) -> None:
        message = parse_object(line)
        if message is None:
            self._run_loop.capture.add_printed(line)
        elif message.get("method") == "session/update":
            await self._handle_update(as_mapping(message.get("params")))
        elif self._turn is not None and "method" not in message and message.get("id") == self._turn.request:
            await self._end_turn(message, line)
        else:
            # A taken up run is read from its start: its turn begins with the answer to the request before.
            if self._turn is not None and message.get("id") == self._turn.request - 1:
                self._in_turn = True
            self._transport.deliver(message)

    async def _handle_update(self, params: Mapping[str, Any]) -> None:
        # What comes before the prompt is the story of a stored session.
        if self._turn is None or not self._in_turn or params.get("sessionId") != self._turn.session:
            return
        for event in self._reader.feed(params, asyncio.get_running_loop().time()):
            await self._run_loop.emit(event)

    async def _end_turn(self, message: Mapping[str, Any], line: bytes) -> None:
        if self._run_loop.result is not None:
            return
        for event in self._reader.finish():
            await self._run_loop.emit(event)
        self._run_loop.set_result(self._result_of(message), line)
        self._run_loop.process.end_input()

    def _result_of(self, message: Mapping[str, Any]) -> AgentResult:
        answer = answer_of(message)
        text, reported, reason, error = self._reader.answer, OutcomeType.AGENT_ERROR, "", None
        if "error" in answer:
            error = as_text(answer["error"]["message"])
        else:
            try:
                reason = schema.PromptResponse.model_validate(answer["result"]).stop_reason
            except ValidationError:
                error = f"{self._agent.title} does not say how its turn ended."
            reported = _ENDS.get(reason, OutcomeType.AGENT_ERROR)
        return AgentResult(
            reported=reported,
            is_error=reported is not OutcomeType.SUCCESS,
            text=text if error is None else None,
            label=reason,
            stop_reason="refusal" if reason == "refusal" else None,
            errors=() if error is None else (error,),
            session_id=self._run_loop.session_id,
            is_judged_by_calls=True,
            raw=as_mapping(answer.get("result")),
        )

    # --- what it is told -------------------------------------------------------------------------

    async def send_input(self) -> None:
        client = self._client = AcpClient(self._agent, self._transport)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._transport.send_refusals())]
                if self._run_loop.spec.until_calls_fail is not None:
                    tasks.append(group.create_task(self._give_up(self._run_loop.spec.until_calls_fail)))
                if not self._is_taken_up:
                    await self._ask(client)
                await self._run_loop.process.exited()
                for task in tasks:
                    task.cancel()
        finally:
            await client.close()

    async def _ask(self, client: AcpClient) -> None:
        session = await client.open_session(self._request)
        turn = _Turn(session.id, session.resumed, self._transport.newest_request + 1)
        self._run_loop.process.hold.note_input(turn.to_note())
        self._set_turn(turn)
        for notice in client.notices:
            await self._run_loop.emit(WarningEvent(WarningCode.AGENT_NOTICE, notice))
        self._in_turn = True
        await client.send_prompt(session.id, self._prompt_for(session.resumed))

    async def _give_up(self, until_calls_fail: Callable[[], Awaitable[None]]) -> None:
        """End a turn whose calls keep failing, unless the agent ends it itself: some repeat them without an end."""
        await until_calls_fail()
        result_received, process = self._run_loop.result_received, self._run_loop.process
        if await wait_bounded(result_received.wait(), GIVE_UP_SECONDS):
            return
        if not await wait_bounded(self._cancel_and_wait(), CANCEL_SECONDS) or not result_received.is_set():
            self._run_loop.set_result(self._failed(_CALLS_FAIL), None)
        process.end_input()
        if not await wait_bounded(process.exited(), EXIT_SECONDS):
            await process.stop()

    def _failed(self, error: str) -> AgentResult:
        return AgentResult(
            reported=OutcomeType.AGENT_ERROR,
            is_error=True,
            text=None,
            errors=(error,),
            session_id=self._run_loop.session_id,
            is_judged_by_calls=True,
        )

    async def interrupt(self) -> None:
        run_loop = self._run_loop
        if self._in_turn and not run_loop.result_received.is_set() and run_loop.process.running:
            await wait_bounded(self._cancel_and_wait(), CANCEL_SECONDS)
        run_loop.process.end_input()
        if run_loop.result_received.is_set():
            await wait_bounded(run_loop.process.exited(), EXIT_SECONDS)

    async def _cancel_and_wait(self) -> None:
        if self._client is not None and self._turn is not None:
            try:
                await self._client.cancel(self._turn.session)
            except (RequestError, ConnectionError):  # it is stopped anyway
                return
            await self._run_loop.result_received.wait()
