"""Prompts that look like options arrive as text; names that look like paths are refused before anything is touched."""

import hashlib
import json
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tests.sandboxed.host_inspection import leftover_job_files

from steadyhand.testing.service import Service, wait_until

PROMPTS, MANY_PROMPTS = 52, 200
NAMES = 300
OPTIONS = (
    "--version", "-p", "--help", "-h", "--mcp-config=/etc/passwd", "--settings={}", "--agents {}", "--model x",
    "--dangerously-skip-permissions", "--add-dir /", "--resume", "--continue", "-c", "--print", "--debug",
    "--append-system-prompt x", "--output-format text", "--permission-mode plan", "--session-id x", "--", "-",
    "---", "--unknown", "-vvv", "--max-budget-usd 0", "@/etc/passwd", "!id", "/clear", "/exit", "#x", "\\n--version",
    "$(id)", "`id`", "; id", "| id", "&& id", "%n%s", "\\x1b[2J", "'--version'", '"--version"', "--bind / /",
    "--args 10", "--seccomp 11", "--dev-bind / /", "--setenv A B", "--share-net", "--uid 0", "--cap-add ALL",
)  # fmt: skip


def hostile_prompts(number: int) -> list[str]:
    """Return prompts that begin, end or are made of options; the same ones each time."""
    chance = random.Random(3)  # noqa: S311  # the same prompts each time
    found = list(OPTIONS)
    while len(found) < number:
        words = chance.choices(OPTIONS, k=chance.randint(2, 5))
        found.append(chance.choice((" ", "\n", "\t", "=", "")).join(words))
    return found


@pytest.mark.parametrize("number", [PROMPTS, pytest.param(MANY_PROMPTS, marks=pytest.mark.long)])
def test_prompts_that_look_like_options_arrive_as_text(sealed: Service, number: int) -> None:
    prompts = [f"{each}\n[[standin: digest]]" for each in hostile_prompts(number)]
    assert len(set(prompts)) == number

    def ask(text: str) -> dict[str, Any]:
        with sealed.new_client() as client:
            body = {"prompt": text, "workspace": "scratch"}
            while True:
                answer = client.post("/v1/jobs", json=body, headers={"prefer": "wait=60"})
                if answer.status_code == 429:
                    continue
                assert answer.status_code in (200, 202), answer.text
                job: dict[str, Any] = answer.json()
                return job

    with ThreadPoolExecutor(8) as pool:
        jobs = list(pool.map(ask, prompts))
    for text, job in zip(prompts, jobs, strict=True):
        if job["finished_at"] is None:
            job = sealed.wait_until_ended(job["id"])  # noqa: PLW2901  # the same job, later
        assert job["state"] == "completed", (text, job["error"])
        data = text.encode()
        assert json.loads(job["answer"]) == {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def hostile_names() -> list[str]:
    """Give names that are no names; the same ones each time."""
    chance = random.Random(4)  # noqa: S311  # the same names each time
    bad = (
        "..", "a..b/../c/..", "/", "a\x00b", "a\nb", "a\n", "\u0430dmin", "claud\u0435", "a\u202eb", "a\u200bb",
        "\uff0e\uff0e",
        "-p", "--version", ".hidden", "_x", " ", "a b", "a;b", "$(id)", "`id`", "a|b", "a&b", "a'b", 'a"b', "a\\b",
        "%2e%2e", "a%00b", "a\tb", "a\rb", "\x7f", "\u00e9", "\u212a", "\u017f", "x" * 65, "x" * 10_000, "",
        "*", "?", "~", "~root",
        "a:b", "a@b", "a,b", "a=b", "{a}", "[a]", "<a>", "../../etc/passwd\x00", "..\\..", "\ud7ff",
        "\U0001f600", "\u2024\u2024",
    )  # fmt: skip
    found = dict.fromkeys(bad)
    while len(found) < NAMES:
        piece = "".join(chance.choices("abcXYZ019._-", k=chance.randint(0, 12)))
        name = piece + chance.choice(bad[2:25]) + chance.choice(("", "/..", "\x00", "\n"))
        if name.rsplit("/", 1)[-1].removesuffix(".md") != "claude":
            found[name] = None
    return list(found)


def test_three_hundred_names_are_refused_before_anything_is_touched(sealed: Service) -> None:
    def looks_of_it() -> tuple[list[str], int]:
        jobs = sealed.data_dir / "jobs"
        there = sorted(path.name for path in jobs.iterdir()) if jobs.is_dir() else []
        return there, len(sealed.client.get("/v1/jobs", params={"limit": 200}).json()["data"])

    before = looks_of_it()
    names = hostile_names()
    assert len(set(names)) == NAMES
    accepted = []
    for number, name in enumerate(names):
        field = ("agent", "session", "agent")[number % 3]
        body = {"prompt": "[[standin: text=x]]", field: name}
        answer = sealed.client.post("/v1/jobs", json=body)
        if answer.status_code != 422:
            accepted.append((field, name, answer.status_code))
    assert accepted == []
    assert looks_of_it() == before


@pytest.mark.parametrize(
    "route",
    ["/v1/jobs/{}", "/v1/jobs/{}/diff", "/v1/jobs/{}/bundle", "/v1/jobs/{}/transcript", "/jobs/{}"],
)
def test_a_jobs_id_that_is_a_path_is_not_found(sealed: Service, route: str) -> None:
    for name in ("..%2f..%2fetc", "%2e%2e", "..", "a%00b", "%0a", "x" * 300, "-", "ffffffffffff"):
        answer = sealed.client.get(route.format(name))
        if answer.url.path == "/":
            continue  # the client itself went up, and asked for the page
        assert answer.status_code in (404, 405, 422, 400), (name, answer.status_code)
    wait_until(lambda: not leftover_job_files(sealed), 10)
