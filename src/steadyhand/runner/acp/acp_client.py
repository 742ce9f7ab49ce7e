"""The service's side of the protocol: it opens a session, sends the prompt, and answers requests of the agent."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from acp import RequestError, schema, text_block
from acp.client.connection import ClientSideConnection
from pydantic import ValidationError

from steadyhand.errors import SpawnError
from steadyhand.runner.acp.acp_agent import AcpAgent
from steadyhand.runner.acp.acp_transport import AcpTransport

PROTOCOL_VERSION = 1
HANDSHAKE_SECONDS = 120.0
"""How long an agent may take until it has a session; the slowest that was tried takes 60 s on a busy machine."""
_MAX_LISTED = 1000
_MAX_NOTICE_LENGTH = 300


@dataclass(frozen=True, slots=True)
class SessionRequest:
    """The session that a run is to have, in a directory."""

    directory: str
    resumes: bool
    session_id: str | None
    meta: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OpenSession:
    """The session of a run; `resumed` is True if it is a stored one."""

    id: str
    resumed: bool


class PermissionClient:
    """Answers an agent's requests for permission: the sandbox limits it, so each call is allowed once."""

    async def request_permission(
        self, options: Sequence[schema.PermissionOption], **_fields: Any
    ) -> schema.RequestPermissionResponse:
        """Allow the call, for once if that is offered; else cancel the request."""
        for kind in ("allow_once", "allow_always"):
            for option in options:
                if option.kind == kind:
                    outcome = schema.AllowedOutcome(outcome="selected", option_id=option.option_id)
                    return schema.RequestPermissionResponse(outcome=outcome)
        return schema.RequestPermissionResponse(outcome=schema.DeniedOutcome(outcome="cancelled"))


class AcpClient:
    """One connection to an agent. `open_session`, then `prompt`."""

    def __init__(self, agent: AcpAgent, transport: AcpTransport) -> None:
        """Create it inside the event loop; `close` ends its tasks."""
        self._agent = agent
        self.notices: list[str] = []
        """Notices about the session, for the user."""
        self._connection = ClientSideConnection(PermissionClient(), transport)  # type: ignore[arg-type]  # a part of it
        self._capabilities = schema.AgentCapabilities()

    async def open_session(self, request: SessionRequest) -> OpenSession:
        """Return the session of a run. Raise `SpawnError` if the agent speaks another version, or does not answer.

        A stored session that cannot be loaded is replaced by a new one.
        """
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS):
                await self._initialize()
                session = await self._load(request) if request.resumes else None
                return session or await self._begin(request)
        except TimeoutError as error:
            raise SpawnError(f"{self._agent.title} did not open a session in time.") from error
        except RequestError as error:
            text = f"{self._agent.title} did not open a session: {error}"
            raise SpawnError(text[:_MAX_NOTICE_LENGTH]) from error
        except ValidationError as error:
            raise SpawnError(f"{self._agent.title} does not answer as the protocol demands.") from error

    async def _initialize(self) -> None:
        # Neither files nor terminals: the agent has its own, in the sandbox.
        answer = await self._connection.initialize(
            PROTOCOL_VERSION,
            client_capabilities=schema.ClientCapabilities(),
            client_info=schema.Implementation(name="steadyhand", version="1"),
        )
        if answer.protocol_version != PROTOCOL_VERSION:
            text = f"{self._agent.title} speaks version {answer.protocol_version} of ACP, not {PROTOCOL_VERSION}."
            raise SpawnError(text, retryable=False)
        self._capabilities = answer.agent_capabilities or self._capabilities

    async def _load(self, request: SessionRequest) -> OpenSession | None:
        session_id = await self._find(request)
        abilities = self._capabilities.session_capabilities
        if session_id is None or not self._agent.loads_sessions:
            return None
        options: dict[str, Any] = {"cwd": request.directory, "session_id": session_id, "mcp_servers": []}
        try:
            if (
                abilities is not None and abilities.resume is not None
            ):  # it does not tell the whole session again
                await self._connection.resume_session(**options, **request.meta)
            elif self._capabilities.load_session:
                await self._connection.load_session(**options, **request.meta)
            else:
                return None
        except RequestError:
            return None
        await self._set_mode(session_id)
        return OpenSession(session_id, resumed=True)

    async def _find(self, request: SessionRequest) -> str | None:
        """Return the job's session, or the newest one: a run that was killed has not told which it had."""
        abilities = self._capabilities.session_capabilities
        if abilities is None or abilities.list is None:
            return request.session_id
        sessions = (await self._connection.list_sessions(cwd=request.directory)).sessions[:_MAX_LISTED]
        ids = [each.session_id for each in sorted(sessions, key=lambda each: each.updated_at or "")]
        if request.session_id in ids:
            return request.session_id
        return ids[-1] if ids else None

    async def _begin(self, request: SessionRequest) -> OpenSession:
        answer = await self._connection.new_session(request.directory, mcp_servers=[], **request.meta)
        await self._set_mode(answer.session_id)
        return OpenSession(answer.session_id, resumed=False)

    async def _set_mode(self, session_id: str) -> None:
        if self._agent.mode is None:
            return
        try:
            await self._connection.set_session_mode(session_id, self._agent.mode)
        except RequestError as error:
            text = f"{self._agent.title} has not the mode {self._agent.mode}: {error}"
            self.notices.append(text[:_MAX_NOTICE_LENGTH])

    async def send_prompt(self, session_id: str, text: str) -> None:
        """Send the prompt. The end of its turn is not for the library, so this goes on until it is cancelled."""
        await self._connection.prompt(session_id, [text_block(text)])

    async def cancel(self, session_id: str) -> None:
        """Ask the agent to end its turn."""
        await self._connection.cancel(session_id)

    async def close(self) -> None:
        """End the tasks of the connection."""
        await self._connection.close()
