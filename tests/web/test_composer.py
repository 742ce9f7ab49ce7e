"""The composer: files within the limits of the API, and the estimate beside the budget."""

import base64
import html
from collections.abc import Mapping
from typing import Any

import pytest
from tests.api.api_service import LIMITED, RunningService, run_job, wait_until
from tests.web.page_client import PageClient

from steadyhand.api.openai.content_parts import MAX_PARTS, MAX_TEXT_BYTES, MAX_TOTAL_BYTES

PNG = b"\x89PNG\r\n\x1a\n" + b"x" * 20
Files = list[tuple[str, tuple[str, bytes, str]]]


def send(page: PageClient, files: Files, **fields: str) -> Any:
    return page.http.post(
        "/ui/jobs", data={"csrf": page.csrf(), "prompt": "say with files", **fields}, files=files
    )


def blocks(service: RunningService, job_path: str) -> list[Mapping[str, Any]]:
    """Return the content of a job when it has begun."""
    job_id = job_path.rpartition("/")[2]
    return list(wait_until(lambda: [job.spec.content for job in service.runner.specs if job.id == job_id])[0])


def test_files_become_the_content_of_the_prompt_as_in_the_api(
    service: RunningService, page: PageClient
) -> None:
    long_text = b"line\n" * (MAX_TEXT_BYTES // 5 + 1)
    files: Files = [
        ("files", ("../../notes <b>.md", "grüße".encode(), "text/markdown")),
        ("files", ("picture.png", PNG, "image/png")),
        ("files", ("paper.pdf", b"%PDF-1.7 x", "application/pdf")),
        ("files", ("long.log", long_text, "application/octet-stream")),
    ]
    answer = send(page, files)
    assert answer.status_code == 303, answer.text
    found = blocks(service, answer.headers["location"])
    assert found[0] == {"type": "text", "text": "say with files"}
    assert (found[1]["title"], found[1]["source"]["data"]) == ("notes_b_.md", "grüße")
    assert found[2]["source"] == {
        "type": "base64",
        "media_type": "image/png",
        "data": base64.b64encode(PNG).decode(),
    }
    assert (found[3]["type"], found[3]["source"]["media_type"]) == ("document", "application/pdf")
    assert (found[4]["type"], found[4]["name"]) == ("file", "long.log")
    assert base64.b64decode(found[4]["data"]) == long_text


def test_a_form_with_an_empty_file_input_is_a_prompt_alone(service: RunningService, page: PageClient) -> None:
    answer = send(page, [("files", ("", b"", "application/octet-stream"))], agent="dear", budget_usd="1,5")
    assert answer.status_code == 303
    assert blocks(service, answer.headers["location"]) == []
    assert service.runner.specs[-1].budget_micros == 1_500_000


def test_a_form_that_is_sent_twice_starts_one_job_and_other_files_are_refused(page: PageClient) -> None:
    first = [send(page, [("files", ("a.txt", b"one", "text/plain"))], once="files-1") for _ in range(2)]
    assert first[0].headers["location"] == first[1].headers["location"]
    changed = send(page, [("files", ("a.txt", b"two", "text/plain"))], once="files-1")
    assert changed.status_code == 422


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([("files", ("x.bin", b"\0\1\2", "application/octet-stream"))], "'x.bin' is neither a PDF nor text"),
        ([("files", ("x.png", b"not one", "image/png"))], "'x.png' is no png"),
        ([("files", ("empty.txt", b"", "text/plain"))], "'empty.txt' is empty"),
        ([("files", ("<b>.exe", b"MZ\x90\0", "text/html"))], "'<b>.exe' is neither"),
        (
            [("files", (f"{n}.txt", b"x", "text/plain")) for n in range(MAX_PARTS + 1)],
            "more than a request may bring",
        ),
        ([("files", (f"{n}.txt", b"x", "text/plain")) for n in range(MAX_PARTS + 2)], "Too many files"),
        ([("files", ("a.txt", b"x" * (MAX_TOTAL_BYTES + 1), "text/plain"))], "more than a request may bring"),
    ],
    ids=["binary", "no image", "empty", "name", "many", "too many", "large"],
)
def test_a_file_that_the_api_refuses_is_named_and_nothing_starts(
    service: RunningService, page: PageClient, files: Files, says: str
) -> None:
    before = service.count()
    answer = send(page, files)
    assert answer.status_code in (400, 422)
    assert says in html.unescape(answer.text)
    assert service.count() == before


@pytest.mark.parametrize(
    ("content_type", "body", "status"),
    [
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=", b"x", 400),
        ("multipart/form-data; boundary=b", b"no boundary here", 400),
        ("multipart/form-data; boundary=b", b"--b\r\nnothing\r\n\r\nx\r\n--b--\r\n", 400),
        ("multipart/form-data; boundary=b; charset=utf-7", b"--b\r\n\r\n\r\nx\r\n--b--\r\n", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"A" * 100_000 + b": x\r\n\r\n\r\n--b--", 400),
        (
            "multipart/form-data; boundary=b",
            b"".join(b'--b\r\nContent-Disposition: form-data; name="n"\r\n\r\nx\r\n' for _ in range(300)),
            400,
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="csrf"\r\n\r\nwrong\r\n--b--\r\n',
            403,
        ),
        ("multipart/form-data; boundary=b", b"x" * (MAX_TOTAL_BYTES + (3 << 20)), 413),
    ],
)
def test_a_form_that_is_none_starts_nothing(
    service: RunningService, page: PageClient, content_type: str, body: bytes, status: int
) -> None:
    before = service.count()
    answer = page.http.post("/ui/jobs", content=body, headers={"content-type": content_type})
    assert answer.status_code == status
    assert service.count() == before


def test_nothing_large_is_read_for_a_browser_that_is_not_signed_in_or_on_another_site(
    stranger: PageClient, page: PageClient
) -> None:
    headers = {"content-type": "multipart/form-data; boundary=b"}
    large = b"x" * (MAX_TOTAL_BYTES + (3 << 20))  # reading it would be 413
    assert stranger.http.post("/ui/jobs", content=large, headers=headers).status_code == 401
    elsewhere = {**headers, "origin": "https://other.example"}
    assert page.http.post("/ui/jobs", content=large, headers=elsewhere).status_code == 403


def test_the_estimate_is_that_of_the_chosen_agent_and_of_jobs_that_the_key_sees(
    service: RunningService, page: PageClient
) -> None:
    with service.client() as client:
        for number in range(5):
            run_job(client, f"say {number}", agent="dear", model="claude-sonnet-5")
    text = page.get("/ui/estimate?agent=dear&model=claude-sonnet-5").text
    assert "Estimate for <bdi>dear</bdi>" in text
    assert "<b>$0.04</b>" in text
    assert "(5 jobs of 30 days)" in text
    assert "No estimate yet for <bdi>dear</bdi>" in page.get("/ui/estimate?agent=dear&workspace=infra").text
    assert "<bdi>&lt;i&gt;" in page.get("/ui/estimate?agent=<i>").text
    with PageClient(service) as client:
        client.sign_in(LIMITED)
        assert "No estimate yet" in client.get("/ui/estimate?agent=dear").text
