"""The stand-in's ways to misbehave: each does what it says, or tests that rely on it prove nothing."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from steadyhand.testing.cli import system_python

from .conftest import AGENT_UID, ROOT, AgentHarness, kind_of

needs_root = pytest.mark.skipif(not ROOT, reason="only root can become another user")


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def pids_in(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def alive(pid: int) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@pytest.mark.parametrize(
    ("directive", "code", "subtype", "is_error"),
    [
        ("", 0, "success", False),
        ("exit=1", 1, "success", False),
        ("is_error exit=0", 0, "success", True),
        ("is_error", 1, "success", True),
        ("result=error", 1, "error_during_execution", True),
        ("result=error exit=0", 0, "error_during_execution", True),
        ("exit=77", 77, "success", False),
    ],
)
def test_exit_code_and_result_are_set_apart(
    world: AgentHarness, standin: Path, directive: str, code: int, subtype: str, *, is_error: bool
) -> None:
    answer = world.run(standin, f"[[standin: {directive}]]")
    assert (answer.code, answer.result["subtype"], answer.result["is_error"]) == (code, subtype, is_error)


def test_without_directives_it_answers_with_the_prompts_beginning(world: AgentHarness, standin: Path) -> None:
    assert world.run(standin, "x" * 100).result["result"] == "ok: " + "x" * 60


@pytest.mark.parametrize(
    ("directive", "code"), [("result=none", 0), ("result=none exit=3", 3), ("exit_now=9", 9)]
)
def test_it_can_end_without_a_result(world: AgentHarness, standin: Path, directive: str, code: int) -> None:
    answer = world.run(standin, f"[[standin: {directive}]]")
    assert (answer.code, answer.out) == (code, b"")
    talk = world.start_conversation(standin)
    talk.say("user", f"[[standin: {directive}]]")
    assert talk.process.wait(10) == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_it_can_die_by_any_signal(world: AgentHarness, standin: Path, number: signal.Signals) -> None:
    assert world.run(standin, f"[[standin: die={number.name}]]").code == -number


def test_a_truncated_result_is_half_a_line(world: AgentHarness, standin: Path) -> None:
    answer = world.run(standin, "[[standin: result=truncated]]")
    assert answer.code == 0
    assert answer.out.startswith(b'{"')
    assert b"\n" not in answer.out
    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.out)


def test_floods_have_their_size_and_their_kind(world: AgentHarness, standin: Path) -> None:
    size = 3 * (1 << 20)
    events = world.run(standin, "[[standin: flood=3M]]").out.splitlines()
    assert sum(len(line) + 1 for line in events[:-1]) in range(size - 4096, size + 1)
    assert all(json.loads(line)["type"] == "system" for line in events[:10])
    raw = world.run(standin, "[[standin: flood_raw=3M]]").out
    assert raw.startswith(b"this line is not JSON")
    assert len(raw) > size
    line = world.run(standin, "[[standin: flood_line=3M]]").out
    assert len(line.split(b"\n")[0]) > size


def test_bad_utf8_comes_out_as_it_is(world: AgentHarness, standin: Path) -> None:
    with pytest.raises(UnicodeDecodeError):
        world.run(standin, "[[standin: bad_utf8]]").out.decode()


def test_a_hang_after_the_result_outlasts_the_end_of_input(world: AgentHarness, standin: Path) -> None:
    talk = world.start_conversation(standin)
    assert talk.ask("[[standin: hang=60]]")["subtype"] == "success"
    assert talk.process.stdin
    talk.process.stdin.close()
    with pytest.raises(subprocess.TimeoutExpired):
        talk.process.wait(0.5)


def test_sigterm_ends_it_with_143_unless_it_is_deaf(world: AgentHarness, standin: Path) -> None:
    for directive, deaf in (("", False), ("deaf", True)):
        ready = world.work / f"ready-{deaf}"
        talk = world.start_conversation(standin)
        talk.say("user", f"[[standin: {directive} touch={ready} sleep=60]]")
        assert eventually(ready.exists)
        talk.process.terminate()
        if deaf:
            with pytest.raises(subprocess.TimeoutExpired):
                talk.process.wait(0.5)
        else:
            assert talk.process.wait(10) == 143


@pytest.mark.parametrize("kind", ["child", "setsid", "daemon", "refork", "setsid:deaf"])
def test_spawned_processes_outlive_it_and_write_their_pids(
    world: AgentHarness, standin: Path, kind: str
) -> None:
    pids = world.work / "pids"
    answer = world.run(standin, f"[[standin: pids={pids} lifetime=20 spawn={kind}]]")
    assert answer.code == 0
    try:
        assert eventually(lambda: alive(pids_in(pids)[-1]))
        pid = pids_in(pids)[-1]
        if kind == "refork":
            assert eventually(lambda: len(pids_in(pids)) > 3)
        else:
            assert (os.getsid(pid) != os.getsid(0)) == (kind != "child")
            os.kill(pid, signal.SIGTERM)
            assert eventually(lambda: not alive(pid), 1) == (not kind.endswith("deaf"))
    finally:
        end = time.monotonic() + 10
        while any(alive(pid) for pid in pids_in(pids)) and time.monotonic() < end:
            for pid in pids_in(pids):
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)


def test_spawned_processes_end_by_themselves_when_their_time_is_over(
    world: AgentHarness, standin: Path
) -> None:
    pids = world.work / "pids"
    world.run(standin, f"[[standin: pids={pids} lifetime=1 spawn=daemon:deaf spawn=refork:deaf]]")
    assert len(pids_in(pids)) > 1
    eventually(lambda: not left_in(world.work, pids))
    assert left_in(world.work, pids) == []


def left_in(folder: Path, pids: Path) -> list[str]:
    """Describe the processes that still run there; a number that went to a process elsewhere does not count."""
    left = []
    for pid in pids_in(pids):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):  # gone, or not ours
            at = Path(f"/proc/{pid}/cwd").readlink()
            if alive(pid) and at == folder.resolve():
                left.append(Path(f"/proc/{pid}/stat").read_text() + Path(f"/proc/{pid}/cmdline").read_text())
    return left


def test_a_deaf_tool_ignores_sigterm_and_ends_with_its_lifetime(world: AgentHarness, standin: Path) -> None:
    pid_file = world.work / "pid"
    process = world.start(standin, "-p", "--output-format", "json")
    assert process.stdin
    process.stdin.write(
        f'[[standin: lifetime=2 run_deaf="echo $$ > {pid_file}; while :; do sleep 0.1; done"]]'.encode()
    )
    process.stdin.close()
    assert eventually(lambda: bool(pids_in(pid_file)))
    [pid] = pids_in(pid_file)
    os.kill(pid, signal.SIGTERM)
    time.sleep(0.2)
    assert alive(pid)
    assert process.wait(10) == 0
    assert not alive(pid)


def test_a_tool_runs_for_real_and_its_result_is_told(world: AgentHarness, standin: Path) -> None:
    talk = world.start_conversation(standin)
    result = talk.ask('[[standin: run="echo made > file; cat file" run="exit 4" text="said {last}"]]')
    told = [m["message"]["content"][0] for m in talk.seen if m["type"] == "user"]
    assert [(block["content"], block["is_error"]) for block in told] == [
        ("made", False),
        ("Exit code 4", True),
    ]
    assert result["result"] == "said Exit code 4"
    assert result["num_turns"] == 3
    assert (world.work / "file").read_text() == "made\n"


def test_it_writes_files_and_commits_with_real_git(world: AgentHarness, standin: Path) -> None:
    answer = world.run(
        standin, '[[standin: run="git init -q ." write="a.txt:hello there" commit="Add a.txt" text={last}]]'
    )
    assert len(answer.result["result"]) == 40
    if ROOT:
        os.chown(world.work, 0, 0)
        for path in world.work.rglob("*"):
            os.chown(path, 0, 0)
    log = subprocess.run(
        ["git", "log", "--format=%s", "--stat"], cwd=world.work, capture_output=True, text=True, check=True
    )
    assert log.stdout.startswith("Add a.txt\n")
    assert "a.txt | 1 +" in log.stdout


def test_a_report_tells_arguments_environment_and_user(world: AgentHarness, standin: Path) -> None:
    session = "11111111-1111-4111-8111-111111111111"
    answer = world.run(
        standin, "[[standin: report]]", "--session-id", session, "--model", "haiku", EXTRA="yes"
    )
    report = json.loads(answer.result["result"])
    assert report["environment"] == world.environment(EXTRA="yes")
    assert report["uid"] == report["gid"] == AGENT_UID
    assert report["session_id"] == answer.result["session_id"] == session
    assert report["cwd"] == str(world.work)
    assert report["argv"][-2:] == ["--model", "haiku"]
    assert report["model"] == "claude-haiku-5-5"


def test_a_prompt_of_two_megabytes_arrives_whole(world: AgentHarness, standin: Path) -> None:
    prompt = "[[standin: digest]]" + "é" * (1 << 20)
    wanted = {"length": len(prompt.encode()), "sha256": hashlib.sha256(prompt.encode()).hexdigest()}
    assert json.loads(world.run(standin, prompt).result["result"]) == wanted
    assert json.loads(world.start_conversation(standin).ask(prompt)["result"]) == wanted


def test_figures_in_the_result_are_those_of_the_directive(world: AgentHarness, standin: Path) -> None:
    result = world.run(
        standin, "[[standin: cost=0.25 input=1 output=2 cache_read=3 cache_creation=4 turns=5]]"
    ).result
    usage = result["usage"]
    assert (usage["input_tokens"], usage["output_tokens"]) == (1, 2)
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (3, 4)
    assert (result["total_cost_usd"], result["num_turns"]) == (0.25, 5)


def test_cost_adds_up_over_the_turns_of_one_process(world: AgentHarness, standin: Path) -> None:
    talk = world.start_conversation(standin)
    costs = [talk.ask("[[standin: cost=0.25 input=7]]") for _ in range(2)]
    assert [result["total_cost_usd"] for result in costs] == [0.25, 0.5]
    assert [result["usage"]["input_tokens"] for result in costs] == [7, 7]


def test_a_cost_above_the_budget_ends_as_a_spent_budget(world: AgentHarness, standin: Path) -> None:
    answer = world.run(standin, "[[standin: cost=2]]", "--max-budget-usd", "1.5")
    assert (answer.code, answer.result["subtype"]) == (1, "error_max_budget_usd")


def test_a_history_is_kept_as_turns(world: AgentHarness, standin: Path) -> None:
    talk = world.start_conversation(standin)
    talk.say("user", "first", shouldQuery=False)
    assert talk.until("result")["num_turns"] == 0
    talk.say("assistant", "answer")
    turns = json.loads(talk.ask("[[standin: history]]")["result"])
    assert turns == [["user", "first"], ["assistant", "answer"], ["user", "[[standin: history]]"]]


def test_a_tool_of_the_client_is_called_by_the_control_protocol(world: AgentHarness, standin: Path) -> None:
    talk = world.start_conversation(standin)
    talk.control("initialize")
    talk.say("user", """[[standin: call='get_weather:{"city": "Oslo"}' text="It is {last}."]]""")
    asked = talk.until("control_request")
    said = asked["request"]["message"]
    assert (asked["request"]["subtype"], asked["request"]["server_name"]) == ("mcp_message", "client")
    assert (said["method"], said["params"]["name"]) == ("tools/call", "get_weather")
    assert said["params"]["arguments"] == {"city": "Oslo"}
    result = {"content": [{"type": "text", "text": "rain"}], "isError": False}
    answer = {"mcp_response": {"jsonrpc": "2.0", "id": said["id"], "result": result}}
    response = {"subtype": "success", "request_id": asked["request_id"], "response": answer}
    talk.send({"type": "control_response", "response": response})
    assert talk.until("result")["result"] == "It is rain."
    (block,) = [
        block
        for message in talk.seen
        if message["type"] == "assistant"
        for block in message["message"]["content"]
        if block["type"] == "tool_use"
    ]
    assert block["name"] == "mcp__client__get_weather"
    assert block["id"] == said["params"]["_meta"]["claudecode/toolUseId"]


def test_a_session_goes_on_where_it_stopped(world: AgentHarness, standin: Path) -> None:
    first = world.run(standin, "remember me").result
    session = first["session_id"]
    later = world.run(standin, "[[standin: history]]", "--resume", session).result
    assert later["session_id"] == session
    assert json.loads(later["result"])[:2] == [["user", "remember me"], ["assistant", "ok: remember me"]]
    assert "already in use" in world.run(standin, "again", "--session-id", session).err


def test_a_schema_gets_a_structured_output(world: AgentHarness, standin: Path) -> None:
    schema = json.dumps({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]})
    assert world.run(standin, "hello", "--json-schema", schema).result["structured_output"] == {"n": 1}
    talk = world.start_conversation(standin)
    talk.control("initialize", jsonSchema=json.loads(schema))
    assert talk.ask("""[[standin: structured='{"n": 5}']]""")["structured_output"] == {"n": 5}


def test_pieces_come_at_the_asked_pace_and_size(world: AgentHarness, standin: Path) -> None:
    talk = world.start_conversation(standin)
    began = time.monotonic()
    talk.ask("[[standin: text=abcdefgh chunk=2 pace=100]]")
    assert time.monotonic() - began >= 0.4
    pieces = [
        m["event"]["delta"]["text"] for m in talk.seen if kind_of(m) == "stream_event/content_block_delta"
    ]
    assert pieces == ["ab", "cd", "ef", "gh"]


def test_it_waits_for_a_file(world: AgentHarness, standin: Path) -> None:
    gate = world.work / "gate"
    talk = world.start_conversation(standin)
    talk.say("user", f"[[standin: say=waiting wait_for={gate}]]")
    talk.until("assistant")
    gate.touch()
    assert talk.until("result")["result"].startswith("ok:")


def test_stderr_is_written_to(world: AgentHarness, standin: Path) -> None:
    assert world.run(standin, '[[standin: stderr="something odd"]]').err == "something odd\n"


def test_a_directive_that_nobody_defined_is_not_passed_over(world: AgentHarness, standin: Path) -> None:
    answer = world.run(standin, "[[standin: slep=3]]")
    assert (answer.code, answer.out) == (64, b"")
    assert "slep" in answer.err


@needs_root
def test_as_root_it_refuses_to_skip_permissions_unless_in_a_sandbox(
    world: AgentHarness, standin: Path, real_cli: Path
) -> None:
    command = ["-p", "--dangerously-skip-permissions", "--output-format", "json"]
    refused = [
        subprocess.run(
            [cli, *command], input=b"hello", env=world.environment(), capture_output=True, check=False
        )
        for cli in (standin, real_cli)
    ]
    assert (refused[0].returncode, refused[0].stderr) == (1, refused[1].stderr)
    allowed = subprocess.run(
        [standin, *command],
        input=b"hello",
        env=world.environment(IS_SANDBOX="1"),
        capture_output=True,
        check=True,
    )
    assert json.loads(allowed.stdout)["result"] == "ok: hello"


def test_it_starts_without_the_modules_that_take_long_to_load(world: AgentHarness, standin: Path) -> None:
    slow = {
        "argparse",
        "dataclasses",
        "inspect",
        "pathlib",
        "subprocess",
        "typing",
        "uuid",
        "datetime",
        "threading",
    }
    library = str(standin.parent / ".stand-in")
    code = f"import sys; sys.path.insert(0, {library!r}); import standin.program; print(*sys.modules)"
    command = [str(system_python()), "-IS", "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "standin.turn" in loaded.stdout.split()
    assert slow.isdisjoint(loaded.stdout.split())
