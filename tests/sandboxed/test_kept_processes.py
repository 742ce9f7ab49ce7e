"""Processes that stay after a job: for the next turn of its conversation, or for its caller after a reset."""

import json
import os
import random
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.sandboxed.warm_services import PATIENCE, cli, cli_below, events_of, wait_for_slot, warm_service

from steadyhand.testing.live_folders import contents_below, paths_below
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import Service, wait_until

__all__ = ["cli"]  # a fixture, taken in
LIVE = "[agents.chat]\nwarm = 1\nlive_seconds = 60\n"
REUSED = "[agents.chat]\nwarm = 1\n"
Message = dict[str, str]


@pytest.fixture(scope="module")
def echo() -> Iterator[ScriptedModel]:
    """A model that repeats what it is told."""
    with ScriptedModel("echo") as model:
        yield model


LONG_NONE = pytest.param("none", marks=pytest.mark.long)
at_both_levels = pytest.mark.parametrize("live", ["bwrap", "none"], indirect=True)


@pytest.fixture(scope="module", params=["bwrap", LONG_NONE])
def live(
    request: pytest.FixtureRequest, reachable_tmp: Path, cli: Path, echo: ScriptedModel
) -> Iterator[Service]:
    """A service whose processes stay for their conversations."""
    with warm_service(reachable_tmp, cli, echo, str(request.param), LIVE, constants=PATIENCE) as made:
        yield made


@pytest.fixture(scope="module")
def reused(reachable_tmp: Path, cli: Path, echo: ScriptedModel) -> Iterator[Service]:
    """A service whose processes stay for their callers."""
    with warm_service(reachable_tmp, cli, echo, "bwrap", REUSED, constants=PATIENCE) as made:
        yield made


def _say(service: Service, conversation: list[Message], text: str, **fields: Any) -> str:
    """Send the next message of a conversation, and add both to it; return the id of its job."""
    conversation.append({"role": "user", "content": text})
    answer = service.client.post(
        "/v1/chat/completions", json={"model": "chat", "messages": conversation, **fields}
    )
    assert answer.status_code == 200, answer.text
    conversation.append({"role": "assistant", "content": answer.json()["choices"][0]["message"]["content"]})
    return str(service.client.get("/v1/jobs").json()["data"][0]["id"])


def _taken(service: Service, job_id: str) -> dict[str, Any] | None:
    return next((each for each in events_of(service, "warm.taken") if each["job"] == job_id), None)


def _texts(body: dict[str, Any]) -> list[str]:
    """Return the texts of a request's conversation, without what the CLI adds."""
    texts = []
    for message in body["messages"]:
        content = message["content"]
        blocks = [{"text": content}] if isinstance(content, str) else content
        texts += [each.get("text", "") for each in blocks if message["role"] != "system"]
    return [text for text in texts if "system-reminder" not in text and "# Environment" not in text]


def test_each_turn_of_a_conversation_goes_on_in_the_process_of_the_turn_before(
    live: Service, echo: ScriptedModel
) -> None:
    wait_for_slot(live)
    echo.clear()
    conversation: list[Message] = []
    jobs = []
    for number in range(4):
        jobs.append(_say(live, conversation, f"Message {number}."))
        live.wait_until_ended(jobs[-1])  # an answer may come before the end
    taken = [_taken(live, job) for job in jobs]
    assert len({each["slot_id"] for each in taken if each is not None}) == 1
    assert [each is not None and each["is_live"] for each in taken] == [False, True, True, True]
    assert _texts(echo.requests[-1].body) == [each["content"] for each in conversation[:-1]]
    assert echo.calls == 4
    for job_id in jobs:
        job = live.get_job(job_id)
        assert (job["state"], job["warnings"], job["usage"]["turns"]) == ("completed", [], 1)
        assert job["cost"]["usd"] == job["cost"]["reported_usd"]
        transcript = (live.data_dir / "jobs" / job_id / "kept" / "transcript.jsonl").read_text()
        assert f"Message {jobs.index(job_id)}." in transcript


def test_the_health_of_the_service_tells_of_its_waiting_processes(live: Service) -> None:
    wait_for_slot(live)
    before = live.client.get("/health").json()["warm"]
    assert before["waiting"] >= before["configured"] == 1
    assert before["oldest_seconds"] >= 0
    assert "shortage" not in before
    conversation: list[Message] = []
    for number in range(2):
        _say(live, conversation, f"Count {number}.")
    after = live.client.get("/health").json()["warm"]
    assert [after[name] - before[name] for name in ("hits", "live_hits", "misses")] == [1, 1, 0]
    assert after["kept"] > before["kept"]
    agents = {each["name"]: each.get("warm") for each in live.client.get("/v1/agents").json()["data"]}
    assert agents["claude"] is None
    assert (agents["chat"]["configured"], agents["chat"]["shortage"]) == (1, None)
    assert agents["chat"]["hits"] == after["hits"] + after["live_hits"]


def test_a_process_that_died_costs_a_resume_and_no_error(live: Service, echo: ScriptedModel) -> None:
    supervisor = wait_for_slot(live)
    conversation: list[Message] = []
    first = _say(live, conversation, "Before the end.")
    assert _taken(live, first) is not None
    os.kill(cli_below(supervisor), signal.SIGKILL)
    second = _say(live, conversation, "After the end.")
    assert live.get_job(second)["warnings"] == []
    assert _texts(echo.requests[-1].body) == [each["content"] for each in conversation[:-1]]


def test_a_second_turn_of_one_job_resumes_what_the_job_left(live: Service, echo: ScriptedModel) -> None:
    wait_for_slot(live)
    conversation: list[Message] = []
    parent = _say(live, conversation, "The trunk.")
    for branch in ("one", "another"):
        turn = live.client.post(f"/v1/jobs/{parent}/turns", json={"prompt": f"The branch {branch}."}).json()
        ended = live.wait_until_ended(turn["id"])
        assert (ended["state"], ended["warnings"]) == ("completed", [])
        assert _texts(echo.requests[-1].body)[-1] == f"The branch {branch}."
        assert "The trunk." in _texts(echo.requests[-1].body)
        assert len(_texts(echo.requests[-1].body)) == 3


def test_a_turn_after_a_resume_of_its_job_knows_what_the_resume_said(
    live: Service, echo: ScriptedModel
) -> None:
    wait_for_slot(live)
    conversation: list[Message] = []
    parent = _say(live, conversation, "The beginning.")
    live.wait_until_ended(parent)  # an answer may come before the end
    resumed = live.client.post(f"/v1/jobs/{parent}/resume", json={"prompt": "The middle.", "budget_usd": 5})
    assert resumed.status_code in (200, 202), resumed.text
    assert live.wait_until_ended(parent)["runs"][-1]["number"] == 2
    turn = live.client.post(f"/v1/jobs/{parent}/turns", json={"prompt": "The end."}).json()
    ended = live.wait_until_ended(turn["id"])
    assert (ended["state"], ended["warnings"]) == ("completed", [])
    texts = _texts(echo.requests[-1].body)
    assert [each for each in texts if each.startswith("The ")] == [
        "The beginning.",
        "The middle.",
        "The end.",
    ]


def test_another_key_gets_neither_the_process_nor_a_word_of_the_conversation(
    live: Service, echo: ScriptedModel
) -> None:
    wait_for_slot(live)
    conversation: list[Message] = []
    own = _say(live, conversation, "A word for nobody else: cockatoo.")
    created = live.client.post("/v1/keys", json={"name": f"other-{own}", "scopes": ["submit", "read"]})
    assert created.status_code == 201, created.text
    with live.new_client(created.json()["secret"]) as other:
        for _ in range(3):
            answer = other.post(
                "/v1/chat/completions",
                json={"model": "chat", "messages": [{"role": "user", "content": "What was the word?"}]},
            )
            assert answer.status_code == 200
            assert "cockatoo" not in json.dumps(echo.requests[-1].body)
        jobs = [each["id"] for each in other.get("/v1/jobs").json()["data"]]
    used = {each["slot_id"] for each in events_of(live, "warm.taken") if each["job"] == own}
    assert not used & {each["slot_id"] for job in jobs if (each := _taken(live, job)) is not None}


USERS = ("ada", "grace", "edsger")


def _remember(service: Service, user: str, words: Sequence[str]) -> list[str]:
    """Say words for a user, one request after the other, and return the ids of their jobs."""
    ids = []
    with service.new_client() as client:
        for word in words:
            messages = [{"role": "user", "content": f"Remember {word}."}]
            body = {"model": "chat", "messages": messages, "user": user}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            ids.append(str(answer.headers["x-steadyhand-job-id"]))
    return ids


@pytest.mark.parametrize(
    "jobs",
    [
        100,
        pytest.param(1000, marks=[pytest.mark.long, pytest.mark.timeout(1200)]),
    ],
)
def test_nothing_of_an_earlier_request_is_in_a_later_one(
    reused: Service, echo: ScriptedModel, jobs: int
) -> None:
    wait_for_slot(reused)
    echo.clear()
    choice = random.Random(jobs)  # noqa: S311  # the same each time
    words: dict[str, list[str]] = {user: [] for user in USERS}
    for number in range(jobs):
        words[choice.choice(USERS)].append(f"secret-{number}-{choice.getrandbits(48):x}")
    # Each user gets a process; from then on all ask at once, and their requests meet as they will.
    ids = {}
    for user in USERS:
        wait_for_slot(reused)
        ids[user] = _remember(reused, user, words[user][:1])
    with ThreadPoolExecutor(len(USERS)) as pool:
        for user, more in zip(
            USERS, pool.map(lambda user: _remember(reused, user, words[user][1:]), USERS), strict=True
        ):
            ids[user] += more
    said = {word for theirs in words.values() for word in theirs}
    found = []
    lengths = set()
    for request in echo.requests:
        text = json.dumps([request.body, request.headers])
        (word,) = (each for each in said if each in text)
        found.append(word)
        assert "/clear" not in text
        assert "local-command" not in text
        lengths.add(len(json.dumps(_texts(request.body))) - len(word))
    assert sorted(found) == sorted(said)
    sessions = [request.headers["x-claude-code-session-id"] for request in echo.requests]
    assert len(set(sessions)) == jobs
    assert len(lengths) == 1, lengths  # nothing is added with the number of the requests before
    # A process is used again, and by one user alone.
    users: dict[str, set[str]] = {}
    taken = {each["job"]: each for each in events_of(reused, "warm.taken")}
    for user, theirs in ids.items():
        for job in theirs:
            if job in taken:
                users.setdefault(taken[job]["slot_id"], set()).add(user)
    assert all(len(each) == 1 for each in users.values())
    assert sum(taken[job]["is_used"] for theirs in ids.values() for job in theirs if job in taken) > jobs / 4


def test_the_home_of_a_process_that_was_reset_is_as_new(reused: Service) -> None:
    wait_for_slot(reused)
    fresh = _files(_ahead(reused, wait_until(lambda: _free_slot(reused))))
    slots = []
    for word in ("parakeet", "budgerigar"):
        job = _say(reused, [], f"Leave nothing: {word}.", user="barbara")
        slots.append(wait_until(lambda job=job: _kept_slot(reused, job)))  # type: ignore[misc]  # bound at once
        folder = _ahead(reused, slots[-1])
        assert _files(folder) == fresh
        assert word not in _content(folder)
    assert slots[0] == slots[1]


def _kept_slot(service: Service, job_id: str) -> str | None:
    return next((each["slot_id"] for each in events_of(service, "warm.kept") if each["job"] == job_id), None)


def _free_slot(service: Service) -> str | None:
    gone = {each["slot_id"] for name in ("warm.taken", "warm.ended") for each in events_of(service, name)}
    return next(
        (each["slot_id"] for each in events_of(service, "warm.ready") if each["slot_id"] not in gone), None
    )


def _ahead(service: Service, slot_id: str) -> Path:
    return service.data_dir / "ahead" / slot_id


def _files(folder: Path) -> set[str]:
    """Return the names of the files that the CLI has, apart from those of its process and of a write under way."""
    transient = ("sessions", ".lock", ".tmp", "fswatch")
    found = (path.relative_to(folder) for part in ("home", "config") for path in paths_below(folder / part))
    return {str(path) for path in found if not any(part in str(path) for part in transient)}


def _content(folder: Path) -> str:
    return "".join(content.decode("utf-8", "replace") for _, content in contents_below(folder))


@at_both_levels
def test_a_run_that_waited_for_its_clients_tools_answers_and_stays_in_one_process(
    live: Service, echo: ScriptedModel
) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": "[[scenario:client-tools]] weather?"}]
    said: dict[str, Any] = {}
    for _ in range(4):
        body = {"model": "chat", "messages": messages, "tools": [tool]}
        answer = live.client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        said = answer.json()["choices"][0]["message"]
        messages.append(said)
        if not said.get("tool_calls"):
            break
        # It waits with its process and without a slot of the queue.
        wait_until(lambda: live.client.get("/health").json()["active"] == 0)
        messages += [
            {"role": "tool", "tool_call_id": each["id"], "content": "snow"} for each in said["tool_calls"]
        ]
    assert said["content"] == "The last one said: snow"
    job = live.client.get("/v1/jobs").json()["data"][0]
    assert live.wait_until_ended(job["id"])["run"] == 1
    messages.append({"role": "user", "content": "Thank you."})
    answer = live.client.post(
        "/v1/chat/completions", json={"model": "chat", "messages": messages, "tools": [tool]}
    )
    assert answer.status_code == 200, answer.text
    turn = live.client.get("/v1/jobs").json()["data"][0]
    assert turn["parent_job_id"] == job["id"]
    assert live.wait_until_ended(turn["id"])["warnings"] == []
    taken = _taken(live, turn["id"])
    if live.environment()["STEADYHAND_ISOLATION"] == "bwrap":
        assert taken is not None
        assert taken["is_live"]
    else:  # no process waited for these tools, and without a sandbox one of its own does not stay
        assert taken is None
