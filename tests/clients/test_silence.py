"""A tool that says nothing for longer than its client waits for the next byte: the stream lives."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from steadyhand.testing.service import ADMIN_KEY, Service

PROMPT = '[[standin: say="I look." run="sleep {}" lifetime=120 text="It was quiet."]] {}'


def _chat(client: openai.OpenAI, prompt: str) -> str:
    with client.chat.completions.create(
        model="claude", stream=True, messages=[{"role": "user", "content": prompt}]
    ) as stream:
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


def _response(client: openai.OpenAI, prompt: str) -> str:
    with client.responses.create(model="claude", stream=True, input=prompt) as stream:
        return "".join(event.delta for event in stream if event.type == "response.output_text.delta")


def _whole(client: openai.OpenAI, prompt: str) -> str:
    with pytest.raises(openai.APITimeoutError) as gave_up:
        client.chat.completions.create(model="claude", messages=[{"role": "user", "content": prompt}])
    return str(gave_up.value)


# The service sends a sign of life every 8 s, of which the shorter silence has two.
@pytest.mark.parametrize(
    ("silent_seconds", "patient_seconds"), [(22, 15.0), pytest.param(90, 20.0, marks=pytest.mark.long)]
)
def test_a_stream_outlives_a_silence_in_which_its_client_would_give_up(
    stand_in_service: Service, silent_seconds: int, patient_seconds: float
) -> None:
    def prompt(way: Callable[[openai.OpenAI, str], str]) -> str:
        return PROMPT.format(silent_seconds, way.__name__)

    def ask(way: Callable[[openai.OpenAI, str], str]) -> str:
        with openai.OpenAI(
            base_url=f"{stand_in_service.url}/v1", api_key=ADMIN_KEY, timeout=patient_seconds, max_retries=0
        ) as client:
            return way(client, prompt(way))

    # The client that waits for a whole answer, and so hears nothing, shows that it does give up.
    ways = (_chat, _response, _whole)
    with ThreadPoolExecutor(len(ways)) as pool:
        chat, response, whole = pool.map(ask, ways)
    assert chat == "I look.\n\nIt was quiet."
    assert response == "I look.It was quiet."
    assert "timed out" in whole
    for way in (_chat, _response):
        (tool,) = _events(stand_in_service, prompt(way), "tool.finished")
        assert tool["data"]["duration_ms"] >= silent_seconds * 1000


def _events(service: Service, prompt: str, kind: str) -> list[dict[str, Any]]:
    jobs = service.client.get("/v1/jobs", params={"limit": 200}).json()["data"]
    (job_id,) = (job["id"] for job in jobs if service.get_job(job["id"])["prompt"] == prompt)
    return [event for event in service.events(job_id) if event["type"] == kind]
