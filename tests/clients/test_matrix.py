"""Every client that people have, as it is released, against a running service: what it shows is what the agent did.

With the stand-in as the agent each client does every case, with the real CLI the ones that show that both speak to each
other. Clients that share library or route with another one do so in `make test-long`. A client's cases run once in one
process, in the order of `PROMPTS` and `REAL`; tests look at what it told of each, on whichever worker of the test run
they are.
"""

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest
from tests.clients.client_programs import PROGRAMS, SHARING, ClientRun, run_client
from tests.clients.lossy_proxy import LOSE_HEADER

from steadyhand.testing.service import Service

PERSON = {"name": "Ada", "age": 36, "home": [1.5, "Oslo"], "pet": {"kind": "cat", "lives": 9}}
PROMPTS: dict[str, Any] = {
    "plain": '[[standin: text="A plain answer."]]',
    "streamed": '[[standin: text="One answer in pieces." chunk=5 pace=2]]',
    "usage": '[[standin: text="four" input=5 cache_read=100 cache_creation=20 output=7]]',
    "structured": f"[[standin: structured='{json.dumps(PERSON)}']]",
    "tools": """[[standin: call='get_weather:{"city": "Oslo"}' text="The tool said: {last}."]]""",
    "multi-turn": ['[[standin: think="Hm, a first one." text="The first answer."]]', "[[standin: history]]"],
    "error": "[[standin: result=error]] Fail.",
    "cut": '[[standin: say="It begins well" chunk=3 pace=2 die=KILL]]',
    "thinking": '[[standin: think="Let me see, it is not hard." text="Thought out." chunk=5]]',
    "refused": "[[standin: result=refusal]] Refuse.",
    "retry": f'[[standin: text="Not lost."]] {LOSE_HEADER}',
}
REAL: dict[str, Any] = {
    "plain": "[[scenario:ok]] Say ok.",
    "streamed": "[[scenario:ok]] Say it in pieces.",
    "tools": "[[scenario:client-tools]] What is the weather?",
    "structured": "[[scenario:person]] Who is it?",
}
OK = "ok: the scripted model has read the prompt."
CAUSE = "the stand-in was told to fail"
# By client, so that the workers of a test run share the clients out and seldom wait for one another.
every_client = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.long] if name in SHARING else []) for name in PROGRAMS],
    scope="session",
)


@pytest.fixture
def runs(name: str, request: pytest.FixtureRequest, client_runs_dir: Path) -> dict[str, ClientRun]:
    """The runs of a client by the model that it asked for; the first worker that needs them makes them."""
    told = client_runs_dir / f"{name}.json"
    with told.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not told.exists():
            services: dict[str, Service] = {
                "chat": request.getfixturevalue("stand_in_service"),
                "claude": request.getfixturevalue("real_service"),
            }
            made = run_client(name, services, {"chat": PROMPTS, "claude": REAL})
            told.write_text(json.dumps(made), encoding="utf-8")
    made = json.loads(told.read_text(encoding="utf-8"))
    return {model: ClientRun(**fields) for model, fields in made.items()}


@pytest.fixture
def client(runs: dict[str, ClientRun]) -> ClientRun:
    """The client with the stand-in as the agent."""
    return runs["chat"]


@pytest.fixture
def really(runs: dict[str, ClientRun]) -> ClientRun:
    """The client with the real CLI."""
    return runs["claude"]


@every_client
def test_plain_the_answer_is_what_the_agent_said(client: ClientRun) -> None:
    assert client.result_of("plain")["text"] == "A plain answer."


@every_client
def test_streamed_the_answer_comes_in_pieces(client: ClientRun) -> None:
    saw = client.result_of("streamed")
    assert saw["text"] == "One answer in pieces."
    assert saw["pieces"] >= 2


@every_client
def test_usage_is_what_the_agent_used_in_one_piece_and_streamed(client: ClientRun) -> None:
    saw = client.result_of("usage")
    for figures in (saw["plain"], saw["streamed"]):
        assert figures == {"input": 125, "output": 7, "cached": 100}


@every_client
def test_structured_the_object_is_the_agents(client: ClientRun) -> None:
    objects = client.result_of("structured")["objects"]  # one for each way in which the client asks for one
    assert objects
    assert all(one == PERSON for one in objects)
    assert len(client.jobs("structured")) == len(objects)


@every_client
def test_tools_a_call_goes_to_the_client_and_its_result_to_the_agent(client: ClientRun) -> None:
    saw = client.result_of("tools")
    assert saw["cities"] == ["Oslo"]
    assert saw["text"] == "The tool said: rain in Oslo."
    (job,) = client.jobs("tools")
    assert (job["state"], job["run"]) == ("completed", 1)


@every_client
def test_multi_turn_the_second_prompt_follows_the_first_in_its_session(client: ClientRun) -> None:
    first, second = PROMPTS["multi-turn"]
    said = json.loads(client.result_of("multi-turn")["text"])
    assert said == [["user", first], ["assistant", "The first answer."], ["user", second]]
    before, after = client.jobs("multi-turn")
    assert after["session_id"] == before["session_id"]


@every_client
def test_error_a_run_that_failed_is_an_exception_with_its_cause_and_is_not_run_again(
    client: ClientRun,
) -> None:
    saw = client.result_of("error")
    for error in (saw["plain"], saw["streamed"]):
        assert error["kind"]
        assert CAUSE in error["text"]
    assert len(client.jobs("error")) == 2


@every_client
def test_cut_an_answer_that_breaks_off_is_an_exception(client: ClientRun) -> None:
    saw = client.result_of("cut")
    assert saw["error"]["kind"]
    assert saw["text"] == "It begins well"
    assert len(client.jobs("cut")) == 1


@every_client
def test_thinking_is_no_part_of_the_answer(client: ClientRun) -> None:
    saw = client.result_of("thinking")
    for way in (saw["plain"], saw["streamed"]):
        assert way == {"text": "Thought out.", "kind": "", "error": ""}


@every_client
def test_refused_shows_the_refusal_or_nothing_and_is_not_run_again(
    client: ClientRun,
) -> None:
    saw = client.result_of("refused")
    for way in (saw["plain"], saw["streamed"]):
        shown = way["text"] or way["error"]
        assert not shown or "safeguards flagged this message" in shown
    assert len(client.jobs("refused")) == 2


@every_client
def test_retry_a_lost_answer_is_asked_for_again_and_the_agent_runs_once(client: ClientRun) -> None:
    assert client.result_of("retry")["text"] == "Not lost."
    assert client.lost_answer
    (job,) = client.jobs("retry")
    assert (job["state"], job["run"]) == ("completed", 1)


@every_client
def test_the_real_cli_answers_whole_and_in_pieces(really: ClientRun) -> None:
    assert really.result_of("plain")["text"] == OK
    saw = really.result_of("streamed")
    assert saw["text"] == OK
    assert saw["pieces"] >= 2


@every_client
def test_the_real_cli_calls_tools_of_the_client_side_by_side(really: ClientRun) -> None:
    saw = really.result_of("tools")
    assert sorted(saw["cities"][:2]) == ["Paris", "Rome"]
    assert saw["cities"][2:] == ["Oslo"]
    assert saw["text"].endswith("The last one said: rain in Oslo")
    (job,) = really.jobs("tools")
    assert (job["state"], job["run"]) == ("completed", 1)


@every_client
def test_the_real_cli_gives_the_object_of_an_ordinary_schema(really: ClientRun) -> None:
    objects = really.result_of("structured")["objects"]
    assert objects
    assert all(one == PERSON for one in objects)
    assert [job["state"] for job in really.jobs("structured")] == ["completed"] * len(objects)
