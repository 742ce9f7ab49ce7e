"""The record that Codex keeps of a thread, in a folder that belongs to the agent."""

import os
from pathlib import Path

import pytest

from steadyhand.redact import Redactor
from steadyhand.runner.agent_files import agent_files_by_runner
from steadyhand.runner.codex.rollout import copy_transcript

OLD, NEW = "2026/11/29", "2026/11/30"


def make_record(config: Path, day: str, text: str) -> Path:
    folder = config / "sessions" / day
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rollout-{day.replace('/', '-')}T00-00-00-01a22edc-ac34-79d1-835a-8a9fd339a28d.jsonl"
    path.write_text(text)
    return path


def copied(config: Path, target: Path, *, owner: int | None = None, since: float = 0.0) -> str | None:
    warning = copy_transcript(
        config, target, owner=owner, redactor=Redactor(["canary-secret-value"]), since=since
    )
    assert warning is None
    return target.read_text() if target.exists() else None


def test_the_newest_record_is_copied_without_secrets(tmp_path: Path) -> None:
    make_record(tmp_path, OLD, '{"old": 1}\n')
    make_record(tmp_path, NEW, '{"text": "canary-secret-value"}\n')
    text = copied(tmp_path, tmp_path / "copy")
    assert text is not None
    assert "canary-secret-value" not in text
    assert '"text"' in text


def test_what_is_not_a_file_of_the_agent_is_not_copied(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("not the agent's\n")
    path = make_record(tmp_path, NEW, "{}\n")
    assert copied(tmp_path, tmp_path / "copy", owner=os.geteuid() + 1) is None
    assert copied(tmp_path, tmp_path / "copy", since=path.stat().st_mtime + 10) is None
    path.unlink()
    path.symlink_to(secret)
    assert copied(tmp_path, tmp_path / "copy") is None
    path.unlink()
    os.mkfifo(path)
    assert copied(tmp_path, tmp_path / "copy") is None


def test_a_folder_that_is_a_link_is_not_entered(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    make_record(elsewhere, NEW, "{}\n")
    config = tmp_path / "config"
    config.mkdir()
    (config / "sessions").symlink_to(elsewhere / "sessions")
    assert copied(config, tmp_path / "copy") is None


@pytest.mark.parametrize("runner", ["claude", "codex"])
def test_the_files_of_a_runner_find_the_record_of_its_agent(tmp_path: Path, runner: str) -> None:
    target = tmp_path / "copy"
    make_record(tmp_path, NEW, '{"codex": 1}\n')
    folder = tmp_path / "projects" / "-workspace"
    folder.mkdir(parents=True)
    (folder / "5e3f0000-0000-4000-8000-000000000000.jsonl").write_text('{"claude": 1}\n')
    agent_files_by_runner({})(runner).copy_transcript(tmp_path, target, owner=None, redactor=Redactor())
    assert runner in target.read_text()


def test_an_agent_that_reads_its_repository_itself_gets_nothing_laid_into_its_folder(tmp_path: Path) -> None:
    files = agent_files_by_runner({})("codex")
    files.write_config(tmp_path, {"CLAUDE.md": "x"}, {}, sandboxed=True)
    assert list(tmp_path.iterdir()) == []
    assert files.read_instructions([("CLAUDE.md", "x")], full_trust=True).texts == {}
