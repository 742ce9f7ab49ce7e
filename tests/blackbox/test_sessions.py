"""Sessions by the OpenAI routes: forks from any earlier turn, one writer at a time, files of earlier turns."""

import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tests.blackbox.conftest import long

from steadyhand.testing.service import MakeService, Service, wait_until

Said = list[dict[str, Any]]
HISTORY = "[[standin: history]]"
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"


@pytest.fixture(scope="module")
def service(make_service_in: MakeService) -> Any:
    with make_service_in(env={"STEADYHAND_ISOLATION": "none", "STEADYHAND_CONCURRENCY": "3"}) as made:
        yield made


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def ask(service: Service, route: str, given: Any, name: str | None = None, **fields: Any) -> httpx2.Response:
    body = {"model": "claude", "messages" if route == CHAT else "input": given, **fields}
    reply = service.client.post(route, json=body, headers={} if name is None else {"x-session-id": name})
    assert reply.status_code == 200, reply.text
    return reply


def text_of(reply: httpx2.Response) -> str:
    assert reply.status_code == 200, reply.text
    body = reply.json()
    text: str = (
        body["choices"][0]["message"]["content"]
        if "choices" in body
        else body["output"][-1]["content"][0]["text"]
    )
    return text


def turns_of(reply: httpx2.Response) -> list[str]:
    return [text for _, text in json.loads(text_of(reply))]


def job_of(service: Service, reply: httpx2.Response) -> dict[str, Any]:
    return service.get_job(reply.headers["x-steadyhand-job-id"])


def says(text: str) -> str:
    return f"[[standin: text={text}]]"


@pytest.mark.parametrize("route", [CHAT, long(RESPONSES)])
def test_a_conversation_forks_from_any_earlier_turn_that_comes_back(service: Service, route: str) -> None:
    mark = route.rsplit("/", 1)[-1]
    first, second = says(f"one-{mark}"), says(f"two-{mark}")
    said: Said = [user(first)]
    root = ask(service, route, said)
    said.append({"role": "assistant", "content": text_of(root)})
    main = ask(service, route, [*said, user(second)])
    longer = [*said, user(second), {"role": "assistant", "content": text_of(main)}]
    # From the first turn on twice more, though a second turn was taken already.
    for word in ("left", "right"):
        fork = ask(service, route, [*said, user(f"{word} {HISTORY}")])
        assert turns_of(fork) == [first, f"one-{mark}", f"{word} {HISTORY}"]
        assert job_of(service, fork)["parent_job_id"] == job_of(service, root)["id"]
    # What was forked from goes on as if nothing had been.
    after = ask(service, route, [*longer, user(HISTORY)])
    assert turns_of(after) == [first, f"one-{mark}", second, f"two-{mark}", HISTORY]
    assert job_of(service, after)["parent_job_id"] == job_of(service, main)["id"]


@pytest.mark.long  # a chat forks above, and a response goes on with an earlier one in `test_conversations`
def test_a_response_forks_from_any_earlier_one(service: Service) -> None:
    root = ask(service, RESPONSES, says("one")).json()
    main = ask(service, RESPONSES, says("two"), previous_response_id=root["id"]).json()
    ask(service, RESPONSES, says("three"), previous_response_id=main["id"])
    for older, before in ((root, [says("one"), "one"]), (main, [says("one"), "one", says("two"), "two"])):
        for word in ("left", "right"):
            given = f"{word} {HISTORY}"
            fork = ask(service, RESPONSES, given, previous_response_id=older["id"])
            assert turns_of(fork) == [*before, given]
            assert job_of(service, fork)["parent_job_id"] == older["id"].removeprefix("resp_")


def test_a_job_of_an_openai_route_has_turns_and_a_session_like_any_other(service: Service) -> None:
    reply = ask(service, CHAT, [user(says("one"))])
    job = job_of(service, reply)
    turn = service.client.post(f"/v1/jobs/{job['id']}/turns", json={"prompt": HISTORY}).json()
    body = {"prompt": HISTORY, "session": job["session_id"]}
    named = service.client.post("/v1/jobs", json=body).json()
    for each in (service.wait_until_ended(turn["id"]), service.wait_until_ended(named["id"])):
        assert [text for _, text in json.loads(each["answer"])][:2] == [says("one"), "one"]
        assert each["session_id"] == job["session_id"]


@pytest.mark.parametrize("route", [CHAT, long(RESPONSES)])
def test_of_two_writers_of_one_session_the_second_waits_for_the_first(
    service: Service, common_dir: Path, route: str
) -> None:
    name, gate = f"one-writer-{route}", common_dir / "gate"
    first = f"[[standin: touch={common_dir}/on wait_for={gate} text=first]]"
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(ask, service, route, [user(first)], name)
        wait_until((common_dir / "on").exists)
        two = pool.submit(ask, service, route, [user(HISTORY)], name)
        waiting = wait_until(
            lambda: service.client.get("/v1/jobs", params={"state": "queued"}).json()["data"]
        )
        assert len(waiting) == 1
        gate.touch()
        assert turns_of(two.result()) == [first, "first", HISTORY]
        assert job_of(service, two.result())["parent_job_id"] == job_of(service, one.result())["id"]


@pytest.mark.long  # two writers are above
def test_of_many_writers_that_come_at_once_each_knows_what_those_before_it_said(service: Service) -> None:
    many = 6
    with ThreadPoolExecutor(many) as pool:
        found = list(pool.map(lambda _: ask(service, CHAT, [user(HISTORY)], "all-at-once"), range(many)))
    assert sorted(len(turns_of(reply)) for reply in found) == [2 * number + 1 for number in range(many)]
    assert len({job_of(service, reply)["session_id"] for reply in found}) == 1


def test_a_turn_that_never_ran_does_not_cut_a_named_session_short(service: Service, common_dir: Path) -> None:
    name = "cut-short"
    ask(service, CHAT, [user(says("kept"))], name)
    held = [
        service.submit(f"[[standin: touch={common_dir}/{n} wait_for={common_dir}/gate]]") for n in range(3)
    ]
    wait_until(lambda: all((common_dir / str(n)).exists() for n in range(3)))
    with ThreadPoolExecutor(2) as pool:
        turn = pool.submit(ask, service, CHAT, [user("[[standin: text=never]]")], name)
        (queued,) = wait_until(
            lambda: service.client.get("/v1/jobs", params={"state": "queued"}).json()["data"]
        )
        waits = pool.submit(ask, service, CHAT, [user(HISTORY)], name)  # for that turn
        wait_until(
            lambda: len(service.client.get("/v1/jobs", params={"state": "queued"}).json()["data"]) == 2
        )
        assert service.client.post(f"/v1/jobs/{queued['id']}/cancel").json()["state"] == "cancelled"
        (common_dir / "gate").touch()
        assert turns_of(waits.result())[:2] == [says("kept"), "kept"]
        with pytest.raises(AssertionError, match="execution_failed"):
            turn.result()
    for each in held:
        service.wait_until_ended(each["id"])
    ask(service, CHAT, [user(says("newest"))], name)
    assert turns_of(ask(service, CHAT, [user(HISTORY)], name))[:2] == [says("kept"), "kept"]


def test_a_turn_whose_session_was_forgotten_is_refused_and_not_begun_anew(service: Service) -> None:
    first = ask(service, RESPONSES, says("gone"))
    job = service.wait_until_ended(job_of(service, first)["id"])
    config = service.data_dir / "jobs" / job["id"] / "config"
    config.rename(config.with_name("away"))
    given = {"model": "claude", "input": HISTORY, "previous_response_id": first.json()["id"]}
    refused = service.client.post(RESPONSES, json=given)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "previous_response_not_found")
    assert "session" in refused.json()["error"]["message"]
    assert service.client.post(f"/v1/jobs/{job['id']}/turns", json={"prompt": "x"}).status_code == 409


@contextmanager
def full_slots(service: Service, folder: Path) -> Iterator[None]:
    """Hold each slot of the service for the length of the block."""
    prompts = [f"[[standin: touch={folder}/held-{n} wait_for={folder}/open]]" for n in range(3)]
    held = [service.submit(prompt)["id"] for prompt in prompts]
    try:
        wait_until(lambda: all((folder / f"held-{n}").exists() for n in range(3)))
        yield
    finally:
        (folder / "open").touch()
        for job_id in held:
            service.wait_until_ended(job_id)


def test_a_job_is_not_deleted_while_a_turn_waits_for_it(service: Service, common_dir: Path) -> None:
    first = service.wait_until_ended(service.submit(says("one"))["id"])
    with full_slots(service, common_dir):
        turn = service.client.post(f"/v1/jobs/{first['id']}/turns", json={"prompt": HISTORY}).json()
        refused = service.client.delete(f"/v1/jobs/{first['id']}")
        assert (refused.status_code, refused.json()["code"]) == (409, "invalid_state")
        assert turn["id"] in refused.json()["detail"]
    answer = json.loads(service.wait_until_ended(turn["id"])["answer"])
    assert [text for _, text in answer] == [says("one"), "one", HISTORY]
    assert service.client.delete(f"/v1/jobs/{first['id']}").status_code == 204
    # From the start means from the conversation, which is gone.
    again = service.client.post(f"/v1/jobs/{turn['id']}/retry", json={})
    assert (again.status_code, again.json()["code"]) == (409, "invalid_state")


def test_a_retry_of_a_turn_knows_the_conversation(service: Service) -> None:
    first = service.wait_until_ended(service.submit(says("one"))["id"])
    turn = service.client.post(f"/v1/jobs/{first['id']}/turns", json={"prompt": HISTORY}).json()
    once = service.wait_until_ended(turn["id"])
    assert service.client.post(f"/v1/jobs/{turn['id']}/retry", json={}).status_code == 202
    again = service.wait_until_ended(turn["id"])
    assert (again["run"], again["answer"], again["warnings"]) == (2, once["answer"], [])
    assert [text for _, text in json.loads(again["answer"])] == [says("one"), "one", HISTORY]


def test_of_a_delete_and_a_turn_at_once_only_one_is_accepted(service: Service) -> None:
    for _ in range(8):
        first = service.wait_until_ended(service.submit(says("one"))["id"])["id"]
        with ThreadPoolExecutor(2) as pool:
            turns = pool.submit(service.client.post, f"/v1/jobs/{first}/turns", json={"prompt": HISTORY})
            deletes = pool.submit(service.client.delete, f"/v1/jobs/{first}")
        answers = turns.result().status_code, deletes.result().status_code
        if answers[0] == 202:
            job = service.wait_until_ended(turns.result().json()["id"])
            # A delete may come after the turn has ended, but never before it has begun.
            assert (job["outcome"]["type"], job["warnings"]) == ("success", [])
            assert [text for _, text in json.loads(job["answer"])][:2] == [says("one"), "one"]
        else:
            assert answers[0] in (404, 409)
            assert answers[1] == 204


@pytest.mark.parametrize("level", [long("none"), long("sealed"), "sealed with a disk limit"])
def test_large_files_of_every_turn_are_there_in_the_turns_after_it(
    make_service: MakeService, level: str
) -> None:
    def with_file(name: str, text: bytes, prompt: str) -> dict[str, Any]:
        data = f"data:text/plain;base64,{base64.b64encode(text * 80_000).decode()}"
        part = {"type": "file", "file": {"filename": name, "file_data": data}}
        return user([{"type": "text", "text": prompt}, part])

    env = {"STEADYHAND_ISOLATION": "none"} if level == "none" else {}
    env |= {"STEADYHAND_DEFAULTS__DISK": "64M"} if "disk" in level else {}
    count = "[[standin: run='cat .attachments/*{}.txt | wc -c' text={{last}}]]"
    with make_service(env=env) as service:
        for name in (None, "by-its-name"):  # else by all that was said
            said: Said = [with_file("birds.txt", b"quetzal ", says("seen"))]
            first = ask(service, CHAT, said, name)
            said.append({"role": "assistant", "content": text_of(first)})
            said.append(with_file("trees.txt", b"oak ", count.format("trees")))
            second = ask(service, CHAT, said[-1:] if name else said, name)
            assert text_of(second) == "320000"
            assert job_of(service, second)["parent_job_id"] == job_of(service, first)["id"]
            assert job_of(service, second)["changes"] is None
            said += [{"role": "assistant", "content": text_of(second)}, user(count.format("birds"))]
            assert text_of(ask(service, CHAT, said[-1:] if name else said, name)) == "640000"
