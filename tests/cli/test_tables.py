"""Tables at the width of a terminal: ids, states and figures are never cut, whole columns go first."""

import io
import re

import pytest
from rich.console import Console, RenderableType
from tests.cli.command_line import JOB_ID, job_json

from steadyhand.api.examples import examples
from steadyhand.cli.tables import agents_table, jobs_table, keys_table, usage_table, workspaces_table

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


def test_wide_characters_are_counted_as_they_are_shown() -> None:
    _, row = shown(jobs_table([JOB | {"title": "標題" * 40, "agent": "代理" * 8}]), 80)
    assert Console(width=200).measure(row).maximum <= 80
    assert "$0.0412" in row
