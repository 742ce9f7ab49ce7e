"""Tables at the width of a terminal: ids, states and figures are never cut, whole columns go first."""

import io
import re

import pytest
from rich.console import Console, RenderableType
from tests.cli.command_line import JOB_ID, job_json

from steadyhand.api.examples import examples
from steadyhand.cli.tables import (
    agents_table,
    job_details,
    jobs_table,
    keys_table,
    usage_table,
    workspaces_table,
)

LONG = "a-name-that-is-quite-long-for-a-column"
JOB = job_json(agent=LONG, api_key_id="k_1234567890", title="A title that has many words " * 3)
USAGE = examples()["USAGE"]["data"][0] | {"model": "claude-sonnet-4-5-20250929", "agent": LONG}


def shown(table: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table, crop=False)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40, 20])
def test_ids_states_and_figures_of_jobs_are_whole_at_any_width(width: int) -> None:
    head, row = shown(jobs_table([JOB]), width)
    assert row.startswith(f"{JOB_ID}  completed")
    assert re.search(r"\$0\.0412(\s|$)", row)
    assert "…" not in row[:24]
    assert len(row) <= max(width, 36)
    assert len(head.split()) <= 8


def test_at_80_columns_a_column_is_whole_or_readable_or_not_there() -> None:
    head, row = shown(jobs_table([JOB]), 80)
    assert head.split()[:2] == ["ID", "STATE"]
    assert max(len(head), len(row)) <= 80
    for name in re.findall(r"\S*…", row):
        assert len(name) >= 8, row


def test_a_narrow_terminal_loses_the_title_before_any_figure() -> None:
    head, _ = shown(jobs_table([JOB]), 60)
    assert "TITLE" not in head
    assert "COST" in head


@pytest.mark.parametrize("width", [80, 60, 40])
def test_figures_of_usage_are_whole_or_left_out_with_their_column(width: int) -> None:
    wide_head, wide_row = shown(usage_table([USAGE], ["agent", "model"]), 300)
    head, row = shown(usage_table([USAGE], ["agent", "model"]), width)
    figures = re.findall(r"[$\d][\d.]*[kM]?(?=\s|$)", wide_row)
    assert figures[-1] == "$1.6892"
    assert row.endswith("$1.6892")
    assert set(re.findall(r"\s([$\d][\d.]*[kM]?)(?=\s|$)", row)) <= set(figures)
    assert set(head.split()) <= set(wide_head.split())
    assert len(row) <= width


def test_no_table_is_wider_than_its_terminal() -> None:
    every = examples()
    key = every["KEY"] | {"name": LONG, "limits": every["KEY"]["limits"] | {"agents": [LONG, LONG]}}
    agent = every["AGENTS"]["data"][0] | {"description": "words " * 30, "model": LONG, "workspace": LONG}
    workspace = {
        "name": "infra",
        "repository": "https://git.example.org/" + LONG * 3,
        "ref": LONG,
        "mode": "checkout",
        "trust": "full",
    }
    for table in (keys_table([key]), agents_table([agent]), workspaces_table([workspace]), jobs_table([JOB])):
        assert max(len(line) for line in shown(table, 80)) <= 80


def test_the_runner_has_a_column_if_a_row_has_another_than_claude() -> None:
    for table, row in ((jobs_table, JOB), (agents_table, examples()["AGENTS"]["data"][0])):
        assert "RUNNER" not in shown(table([row]), 200)[0].split()
        head, usual, other = shown(table([row, row | {"runner": "codex"}]), 200)
        assert "RUNNER" in head.split()
        assert head.index("RUNNER") == other.index("codex") == usual.index("claude", 1 + len("claude"))
        assert max(len(line) for line in shown(table([row | {"runner": "codex"}]), 60)) <= 60


def test_the_details_of_a_job_name_its_runner() -> None:
    assert "runner    codex" in shown(job_details(JOB | {"runner": "codex"}), 80)


def test_wide_characters_are_counted_as_they_are_shown() -> None:
    _, row = shown(jobs_table([JOB | {"title": "標題" * 40, "agent": "代理" * 8}]), 80)
    assert Console(width=200).measure(row).maximum <= 80
    assert "$0.0412" in row


def _agent(name: str, **warm: object) -> dict[str, object]:
    return {**examples()["AGENTS"]["data"][0], "name": name, **({"warm": warm} if warm else {})}


def test_agents_show_their_waiting_processes_and_why_there_are_fewer() -> None:
    why = {"reason": "process", "detail": "The waiting process ended.", "at": "2026-01-01T00:00:00Z"}
    agents = [
        _agent("chat", configured=2, waiting=2, kept=1, hits=7, misses=3, shortage=None),
        _agent("claude", configured=4, waiting=0, kept=0, hits=0, misses=5, shortage=why),
        _agent("plain"),
    ]
    head, chat, claude, plain, *rest = shown(agents_table(agents), 120)
    assert {"WARM", "HITS"} <= set(head.split())
    assert {"2/2", "7/10"} <= set(chat.split())
    assert {"0/4", "0/5"} <= set(claude.split())
    assert plain.split()[0] == "plain"
    assert rest == ["! claude: fewer processes wait than configured. The waiting process ended."]
    assert "WARM" in shown(agents_table(agents), 80)[0]
    assert max(len(line) for line in shown(agents_table(agents), 80)[:4]) <= 80


def test_agents_without_waiting_processes_have_no_column_for_them() -> None:
    (head, *rest) = shown(agents_table([_agent("plain")]), 120)
    assert "WARM" not in head
    assert len(rest) == 1


def test_the_reason_of_a_shortage_cannot_move_the_cursor() -> None:
    why = {"reason": "process", "detail": "a\x1b[2Jb\nc", "at": "2026-01-01T00:00:00Z"}
    agent = _agent("chat", configured=1, waiting=0, kept=0, hits=0, misses=0, shortage=why)
    lines = shown(agents_table([agent]), 120)
    assert len(lines) == 3
    assert "\x1b" not in lines[-1]
