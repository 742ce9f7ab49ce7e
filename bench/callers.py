"""The ways to ask an agent that are compared: the bare CLI, a plain wrapper of it, and this service in its forms.

Each way answers the same prompt with the same CLI and the same scripted model, as the same unprivileged user, and each
run has a home of its own. A way is asked by one caller or by many at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench.worlds import Broken, child_environment, given_to, made_in
from bench.wrapper import STREAM_ARGUMENTS
from steadyhand.agents import BUILT_IN_AGENTS
from steadyhand.runner.claude.lean_context import lean_environment, lean_options
from steadyhand.testing.cli import isolated_env
from steadyhand.testing.contracts.samples import make_job
from steadyhand.testing.service import ADMIN_KEY, PLAIN_HTTP, Service

PROMPT = "Say that all is well."
_SECONDS = 120.0
_TEXT = b'"text_delta"'
_CHAT = BUILT_IN_AGENTS["chat"]
_LEAN_ARGUMENTS = [*lean_options(_CHAT), "--tools", "", "--setting-sources", "user"]
_LEAN_ENVIRONMENT = lean_environment(make_job(agent="chat", workspace=None), _CHAT)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: milliseconds to its first text and to its end, and its text."""

    first_ms: float
    whole_ms: float
    text: str


@dataclass(frozen=True, slots=True)
class Way:
    """A way to ask. `ask` gets the number of the caller; `settle` waits until the next round can begin."""

    name: str
    what: str
    ask: Callable[[int], Any]
    settle: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """The things that all ways share: a directory, the CLI, the model's address and the user of the agents."""

    root: Path
    cli: Path
    model: str
    user: int | None


async def _no_wait() -> None:
    """Return at once: nothing is left over from a round."""


# --- the bare CLI ------------------------------------------------------------------------------


@asynccontextmanager
async def bare(stage: Stage) -> AsyncIterator[Way]:
    """Start `claude -p` for each answer."""

    async def ask(_caller: int) -> Answer:
        home = given_to(stage.root / f"home-{time.monotonic_ns()}", stage.user)
        who: dict[str, Any] = {}
        if stage.user is not None:
            who = {"user": stage.user, "group": stage.user, "extra_groups": []}
        began = time.monotonic()
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            str(stage.cli), *STREAM_ARGUMENTS, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL,
            env=isolated_env(home, stage.model), cwd=home, limit=1 << 24, **who,
        )  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(PROMPT.encode())
            process.stdin.close()
            async with asyncio.timeout(_SECONDS):
                answer = await _read_answer(process.stdout, began, _text_of_cli)
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            raise Broken(f"the bare CLI ended with {process.returncode}")
        return Answer(answer.first_ms, _ms_since(began), answer.text)

    yield Way("bare CLI", "`claude -p` for each answer, from its start to its end", ask, _no_wait)


def _text_of_cli(line: bytes) -> str:
    return str(json.loads(line)["event"]["delta"]["text"]) if _TEXT in line else ""


# --- a plain wrapper ---------------------------------------------------------------------------


@asynccontextmanager
async def wrapper(stage: Stage, *, lean: bool = False) -> AsyncIterator[Way]:
    """Serve a FastAPI app of 40 lines that starts `claude -p` for each answer.

    With `lean` its requests to the model are those of the agent `chat`: the same system prompt, and no tools.
    """
    homes = made_in(stage.root, "wrapper")
    env = isolated_env(homes, stage.model) | {
        "PYTHONPATH": child_environment()["PYTHONPATH"],
        "HOMES": str(homes),
        **(_LEAN_ENVIRONMENT if lean else {}),
    }
    argv = [
        sys.executable,
        "-m",
        "bench.wrapper",
        str(stage.cli),
        "-" if stage.user is None else str(stage.user),
        json.dumps(_LEAN_ARGUMENTS if lean else []),
    ]
    process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE, env=env)
    try:
        assert process.stdout is not None
        async with _client(f"http://127.0.0.1:{int(await process.stdout.readline())}") as client:

            async def ask(_caller: int) -> Answer:
                return await _post(client, "/chat", {"prompt": PROMPT}, _text_of_wrapper)

            what = "a FastAPI app of 40 lines that starts `claude -p` for each answer and streams its text"
            yield Way("plain wrapper", what, ask, _no_wait)
    finally:
        process.terminate()
        await process.wait()


def _text_of_wrapper(line: bytes) -> str:
    return str(json.loads(line[6:])["content"]) if b'"content"' in line else ""


# --- this service ------------------------------------------------------------------------------


@asynccontextmanager
async def cold(stage: Stage) -> AsyncIterator[Way]:
    """Serve the agent `chat` without a process that waits."""
    async with _service(stage, "cold") as (_, client):

        async def ask(_caller: int) -> Answer:
            return await chat(client, [{"role": "user", "content": PROMPT}])

        yield Way("Steadyhand, cold", "a streamed chat with the agent `chat`, sealed", ask, _no_wait)


@asynccontextmanager
async def warm(stage: Stage) -> AsyncIterator[Way]:
    """Serve the agent `chat` with processes that wait: each answer takes one, and another takes its place."""
    async with warm_service(stage, "warm", "[agents.chat]\nwarm = 16\n") as (service, client):

        async def ask(_caller: int) -> Answer:
            return await chat(client, [{"role": "user", "content": PROMPT}])

        yield Way(
            "Steadyhand, warm", "the same, with a process that waits for each caller", ask, service.settle
        )


@asynccontextmanager
async def live(stage: Stage) -> AsyncIterator[Way]:
    """Serve the agent `chat` with processes that stay: each caller goes on with a conversation of its own."""
    config = "[agents.chat]\nwarm = 16\nlive_seconds = 600\n"
    conversations: defaultdict[int, list[Mapping[str, str]]] = defaultdict(list)
    async with warm_service(stage, "live", config) as (service, client):

        async def ask(caller: int) -> Answer:
            messages = conversations[caller]
            # Each begins differently: of two that are alike, one process would hold the conversation of both.
            messages.append({"role": "user", "content": f"{PROMPT} Caller {caller}, {len(messages)}."})
            answer = await chat(client, messages)
            messages.append({"role": "assistant", "content": answer.text})
            return answer

        await asyncio.gather(
            *(ask(caller) for caller in range(16))
        )  # the first turns, which are not measured
        what = "the next turn of each caller's conversation, in the process that holds it"
        yield Way("Steadyhand, live", what, ask, service.settle)


@dataclass
class WarmService:
    """A service with processes that wait. `wanted` is the number that wait when a round can begin."""

    service: Service
    wanted: int

    async def settle(self) -> None:
        """Wait until as many processes wait as are to."""
        async with asyncio.timeout(_SECONDS):
            while self.waiting < self.wanted:  # noqa: ASYNC110  # another process writes the log
                await asyncio.sleep(0.05)

    @property
    def waiting(self) -> int:
        """Return the number of processes that wait, by the log of the service."""
        waiting: set[str] = set()
        for line in self.service.log_since_start.split("\n"):
            if '"event": "warm.' in line:
                entry = json.loads(line)
                if entry["event"] in ("warm.ready", "warm.kept"):
                    waiting.add(entry["slot_id"])
                elif entry["event"] in ("warm.taken", "warm.ended"):
                    waiting.discard(entry["slot_id"])
        return len(waiting)


@asynccontextmanager
async def warm_service(
    stage: Stage, name: str, config: str, wanted: int = 16, **env: str
) -> AsyncIterator[tuple[WarmService, httpx2.AsyncClient]]:
    """Serve with waiting processes, whose number is `wanted`; a debug log tells of them."""
    memory = "[service]\nwarm_memory = '4G'\n"
    debug = {"STEADYHAND_SERVICE__LOG_LEVEL": "debug"}
    async with _service(stage, name, memory + config, debug | env) as (service, client):
        made = WarmService(service, wanted)
        await made.settle()
        yield made, client


async def chat(client: httpx2.AsyncClient, messages: Sequence[Mapping[str, str]], **fields: Any) -> Answer:
    """Ask an agent, `chat` unless `fields` names another as `model`, and return its streamed answer."""
    body = {"model": "chat", "stream": True, "messages": list(messages), **fields}
    return await _post(client, "/v1/chat/completions", body, _text_of_chat)


def _text_of_chat(line: bytes) -> str:
    if b'"content"' not in line:
        return ""
    choices = json.loads(line[6:])["choices"]
    return str(choices[0]["delta"].get("content") or "") if choices else ""


@asynccontextmanager
async def _service(
    stage: Stage, name: str, config: str = "", variables: Mapping[str, str] | None = None
) -> AsyncIterator[tuple[Service, httpx2.AsyncClient]]:
    isolation = "bwrap" if os.geteuid() == 0 else "none"
    env = {"STEADYHAND_ISOLATION": isolation, "STEADYHAND_SERVICE__CONCURRENCY": "16", **(variables or {})}
    service = Service(made_in(stage.root, name), stage.cli, model=stage.model, env=env, config=config)
    try:
        await asyncio.to_thread(service.start)
        async with _client(service.url) as client:
            yield service, client
    finally:
        await asyncio.to_thread(service.close)


# --- clients -----------------------------------------------------------------------------------


def _client(url: str) -> AbstractAsyncContextManager[httpx2.AsyncClient]:
    return httpx2.AsyncClient(
        base_url=url, headers={"authorization": f"Bearer {ADMIN_KEY}"}, timeout=_SECONDS, trust_env=False,
        verify=PLAIN_HTTP, limits=httpx2.Limits(max_connections=None),
    )  # fmt: skip


async def _post(
    client: httpx2.AsyncClient, path: str, body: Mapping[str, Any], text_of: Callable[[bytes], str]
) -> Answer:
    began = time.monotonic()
    async with client.stream("POST", path, json=body) as response:
        if response.status_code != 200:
            raise Broken(f"{path} gave {response.status_code}: {(await response.aread())[:300]!r}")
        return await _read_answer(_lines(response), began, text_of)


async def _lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    async for line in response.aiter_lines():
        yield line.encode()


async def _read_answer(lines: AsyncIterator[bytes], began: float, text_of: Callable[[bytes], str]) -> Answer:
    first, texts = None, []
    async for line in lines:
        text = text_of(line)
        if text:
            first = _ms_since(began) if first is None else first
            texts.append(text)
    if first is None:
        raise Broken("an answer had no text")
    return Answer(first, _ms_since(began), "".join(texts))


def _ms_since(began: float) -> float:
    return 1000 * (time.monotonic() - began)
