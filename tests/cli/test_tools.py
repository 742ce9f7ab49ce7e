"""`steadyhand tools`: a table of calls, failures and time."""

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.cli.command_line import CommandLine, ScriptedAnswer, ScriptedService

ROW = {
    "object": "tool_usage",
    "tool": "Bash",
    "agent": "claude",
    "api_key_id": "k_7",
    "job_id": None,
    "calls": 41,
    "failures": 3,
    "unfinished": 1,
    "seconds": 92.3,
}


def answer(*rows: dict[str, Any]) -> ScriptedAnswer:
    body = {"object": "list", "data": list(rows), "has_more": False, "next_cursor": None, "jobs": 12}
    return ScriptedAnswer.of(body)


def test_a_table_has_a_column_for_each_group_and_the_names_of_keys(
    steadyhand: CommandLine, service: ScriptedService
) -> None:
    keys = {"object": "list", "data": [{"id": "k_7", "name": "nightly", "revoked_at": None}]}
    service.respond("GET", "/v1/keys", ScriptedAnswer.of(keys))
    service.respond("GET", "/v1/tools", answer(ROW, ROW | {"tool": "mcp__x\x1b[31m", "failures": 0}))
    ran = steadyhand("tools", "--by", "agent", "--by", "api_key", "--agent", "claude", "--jobs", "50")
    assert ran.code == 0, ran.err
    header, first, second = ran.out.splitlines()
    assert header.split() == ["TOOL", "AGENT", "KEY", "CALLS", "FAILED", "UNFINISHED", "TIME"]
    assert first.split() == ["Bash", "claude", "nightly", "41", "3", "1", "1m", "32s"]
    assert second.startswith("mcp__x")
    assert "\x1b" not in ran.out
    query = parse_qs(urlsplit(service.requests[-1].path).query)
    assert query == {
        "by": ["agent", "api_key"],
        "agent": ["claude"],
        "jobs": ["50"],
        "days": ["30"],
        "limit": ["1000"],
    }


def test_without_calls_it_says_so(steadyhand: CommandLine, service: ScriptedService) -> None:
    service.respond("GET", "/v1/tools", answer())
    ran = steadyhand("tools")
    assert (ran.code, ran.out, ran.err) == (0, "", "No tool was called.\n")


def test_the_tools_of_a_real_job_are_counted(live: CommandLine) -> None:
    prompt = '[[standin: run="echo one" text="Done."]]'
    job_id = json.loads(live("run", "--json", prompt).out)["id"]
    found = json.loads(live("tools", job_id[:9], "--by", "job", "--json").out)
    (row,) = found["data"]
    assert (row["tool"], row["calls"], row["failures"], row["unfinished"]) == ("Bash", 1, 0, 0)
    assert row["job_id"] == job_id
    assert found["jobs"] == 1
    assert live("tools", "0000000000ff").code == 3
