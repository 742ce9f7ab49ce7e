"""The files of agents that speak ACP: instructions where they look for them, and their newest record."""

import os
from pathlib import Path

from steadyhand.redact import Redactor
from steadyhand.runner.acp.acp_agent import BUILT_IN_ACP_AGENTS
from steadyhand.runner.agent_files import agent_files_by_runner

FILES = agent_files_by_runner(BUILT_IN_ACP_AGENTS)


def test_instructions_are_laid_where_opencode_looks_for_them(tmp_path: Path) -> None:
    files = FILES("opencode")
    assert tuple(files.instruction_files) == ("AGENTS.md",)
    texts = files.read_instructions([("AGENTS.md", "Be kind.")], full_trust=False).texts
    files.write_config(tmp_path, texts, {}, sandboxed=True)
    assert (tmp_path / ".config" / "opencode" / "AGENTS.md").read_text() == "Be kind."


def test_agents_md_stands_for_a_claude_md_that_is_not_there() -> None:
    files = FILES("claude-agent-acp")
    both = [("CLAUDE.md", "for Claude"), ("AGENTS.md", "for all")]
    assert files.read_instructions(both, full_trust=False).texts == {"CLAUDE.md": "for Claude"}
    assert files.read_instructions(both[1:], full_trust=False).texts == {"CLAUDE.md": "for all"}
    assert "AGENTS.md" not in FILES("claude").instruction_files


def test_the_newest_record_is_the_transcript_and_no_link_is_followed(tmp_path: Path) -> None:
    sessions = tmp_path / "home" / ".kimi-code" / "sessions"
    for number, name in enumerate(("old", "new")):
        record = sessions / "wd_w" / name / "agents" / "main" / "wire.jsonl"
        record.parent.mkdir(parents=True)
        record.write_text(f'"{name}"\n')
        os.utime(record, (number + 1, number + 1))
    (sessions / "wd_w" / "link").symlink_to(sessions / "wd_w" / "old")
    target = tmp_path / "copy"
    files = FILES("kimi")
    assert files.copy_transcript(tmp_path / "home", target, owner=None, redactor=Redactor()) is None
    assert target.read_text() == '"new"\n'
    target.unlink()
    files.copy_transcript(tmp_path / "nothing", target, owner=None, redactor=Redactor())
    FILES("opencode").copy_transcript(tmp_path / "home", target, owner=None, redactor=Redactor())
    assert not target.exists()
