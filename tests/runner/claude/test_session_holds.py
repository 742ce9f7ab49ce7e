"""The search for tool calls in a session's file, which belongs to the agent."""

import json
import os
from pathlib import Path

import pytest

from steadyhand.runner.claude import transcript
from steadyhand.runner.claude.session import session_file
from steadyhand.runner.claude.transcript import session_holds

DIRECTORY, SESSION = "/workspace", "0b5f9f0e-0000-4000-8000-000000000000"


def line(tool_use_id: str) -> str:
    block = {"type": "tool_use", "id": tool_use_id, "name": "mcp__client__look", "input": {}}
    return json.dumps({"message": {"content": [block]}}, separators=(",", ":")) + "\n"


def holds(config: Path, *ids: str) -> bool:
    return session_holds(config, DIRECTORY, SESSION, ids)


@pytest.fixture
def session(tmp_path: Path) -> Path:
    path = session_file(tmp_path, DIRECTORY, SESSION)
    path.parent.mkdir(parents=True)
    return path


def test_a_session_holds_calls_once_every_one_of_them_is_written(tmp_path: Path, session: Path) -> None:
    assert not holds(tmp_path, "toolu_1")
    session.write_text(line("toolu_1"))
    assert holds(tmp_path, "toolu_1")
    assert not holds(tmp_path, "toolu_1", "toolu_2")
    assert not holds(tmp_path, "toolu_")
    with session.open("a") as file:
        file.write(line("toolu_2"))
    assert holds(tmp_path, "toolu_1", "toolu_2")


def test_a_call_is_found_wherever_the_chunks_are_cut(
    tmp_path: Path, session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.write_text(line("toolu_1") + "." * 300)
    for size in range(1, 400, 7):
        monkeypatch.setattr(transcript, "CHUNK_BYTES", size)
        assert holds(tmp_path, "toolu_1"), size
        assert not holds(tmp_path, "toolu_2")


def test_only_the_end_of_a_long_session_is_searched(
    tmp_path: Path, session: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transcript, "_SEARCHED_BYTES", 1000)
    session.write_text(line("toolu_1") + "." * 1000 + line("toolu_2"))
    assert holds(tmp_path, "toolu_2")
    assert not holds(tmp_path, "toolu_1")


def test_what_is_no_session_of_the_agent_s_own_is_not_read(tmp_path: Path, session: Path) -> None:
    outside = tmp_path / "outside.jsonl"
    outside.write_text(line("toolu_1"))
    session.symlink_to(outside)
    assert not holds(tmp_path, "toolu_1")
    session.unlink()
    os.mkfifo(session)
    assert not holds(tmp_path, "toolu_1")
    session.unlink()
    session.mkdir()
    assert not holds(tmp_path, "toolu_1")
    session.rmdir()
    session.write_text(line("toolu_1") + line("x" * 300))
    assert holds(tmp_path, "toolu_1")
    assert not holds(tmp_path, "x" * 300)
    real = tmp_path / "elsewhere"
    session.parent.rename(real)
    session.parent.symlink_to(real)
    assert not holds(tmp_path, "toolu_1")
