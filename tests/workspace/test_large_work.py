"""Work that is large, or whose harvest is cut: the commits come out first, then the files in parts."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async
from tests.workspace.test_lost_work import Bundle, changes_of, codes

from steadyhand.agents import Agent
from steadyhand.ports import Checkout, ExecResult, Harvest
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.runner.process.sandbox_exec import PassedOn
from steadyhand.testing.contracts.checkouts import Repository, run_shell
from steadyhand.workspace import GitCheckouts, harvest_import
from steadyhand.workspace.git import MIB
from steadyhand.workspace.harvest_frames import FrameReceiver


class Cutting:
    """A sandbox whose harvest is cut after some bytes, as if its time were over."""

    def __init__(self, sandbox_exec: Any, limit: int) -> None:
        self._sandbox_exec = sandbox_exec
        self._left = limit

    async def run(self, argv: Any, checkout: Checkout, agent: Agent, **options: Any) -> ExecResult:
        feed = options.get("on_stdout")
        if feed is None:
            done: ExecResult = await self._sandbox_exec.run(argv, checkout, agent, **options)
            return done

        def cut(chunk: bytes) -> float:
            piece, self._left = chunk[: self._left], max(0, self._left - len(chunk))
            return float(feed(piece)) if piece else 0.0

        await self._sandbox_exec.run(argv, checkout, agent, **{**options, "on_stdout": cut})
        return ExecResult(None, b"", b"")


def work_and_cut(world: Path, repository: Repository, script: str, limit: int) -> tuple[Checkout, Harvest]:
    """Give the place and the harvest after an agent did this and the harvest was cut."""

    async def go() -> tuple[Checkout, Harvest]:
        made = SandboxedCheckouts(world)
        place = await made.prepare(repository.workspace())
        await made.run_as_agent(place, script)
        cutting = GitCheckouts(
            world / "data", debounce_seconds=0, sandbox_exec=Cutting(made.sandbox_exec, limit), overlay=True,
            agent_files=ClaudeFiles(), redactor=NO_REDACTION,
        )  # fmt: skip
        return place, await cutting.harvest(place)

    return run_async(go())


COMMIT_AND_FILES = """
echo a > a.txt && git add -A && git commit -qm Mine
for n in 1 2 3 4 5; do head -c 80000 /dev/urandom > f$n; done
"""


def test_a_harvest_that_is_cut_keeps_the_commits_and_the_first_files_and_names_the_others(
    world_dir: Path, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest_import, "BATCH_BYTES", 100_000)
    place, harvest = work_and_cut(world_dir, repository, COMMIT_AND_FILES, 250_000)
    assert set(codes(harvest)) == {"harvest_partial"}
    assert changes_of(harvest).files == 4
    told = " ".join(warning.message for warning in harvest.warnings)
    assert "f4, f5" in told
    assert "f3" not in told
    diff = place.paths.diff.read_text(encoding="utf-8", errors="replace")
    assert all(f"b/{name}" in diff for name in ("a.txt", "f1", "f2", "f3"))
    assert "Mine" in Bundle(repository, place).git(f"log --format=%s {changes_of(harvest).head}")


@pytest.mark.long
def test_a_harvest_that_is_cut_before_the_files_keeps_the_commits(
    world_dir: Path, repository: Repository
) -> None:
    place, harvest = work_and_cut(world_dir, repository, COMMIT_AND_FILES, 2000)
    assert "harvest_partial" in codes(harvest)
    assert changes_of(harvest).files == 1
    assert Bundle(repository, place).git(f"show {changes_of(harvest).head}:a.txt") == "a\n"


@pytest.mark.long
def test_files_of_two_hundred_mebibytes_come_out_beside_a_small_commit(
    world_dir: Path, repository: Repository
) -> None:
    script = (
        "echo a > a.txt && git add -A && git commit -qm Mine\n"
        "for n in 1 2 3 4; do head -c 52428800 /dev/urandom > f$n; done"
    )
    place, harvest = run_async(SandboxedCheckouts(world_dir).run_and_harvest(repository.workspace(), script))
    # The diff has a limit of its own.
    assert codes(harvest) == ["diff_too_large"]
    assert changes_of(harvest).files == 5
    bundle = Bundle(repository, place)
    assert bundle.git(f"cat-file -s {changes_of(harvest).head}:f4") == "52428800\n"
    run_shell("git fsck --strict", bundle.folder)


def test_each_mebibyte_that_comes_out_adds_to_the_time_and_claims_only_up_to_the_limit(
    tmp_path: Path,
) -> None:
    receiver = FrameReceiver(tmp_path, 4 * MIB)
    assert receiver.feed(b'{"pack": "files", "size": %d}\n' % (2 * MIB)) == 0
    assert [receiver.feed(b"x" * MIB) for _ in range(2)] == [1, 1]
    assert receiver.feed(b'{"section": "progress", "bytes": %d}\n' % (3 * MIB)) == 3
    assert receiver.feed(b'{"section": "progress", "bytes": %d}\n' % (900 * MIB)) == 1
    assert receiver.feed(b'{"section": "progress", "bytes": %d}\n' % (900 * MIB)) == 0
    assert [frame.pack is not None for frame in receiver.frames] == [True, False, False, False]


def test_output_that_is_passed_on_is_not_kept_and_moves_the_time_limit() -> None:
    async def go() -> tuple[float, bytes]:
        got = bytearray()

        def feed(chunk: bytes) -> float:
            got.extend(chunk)
            return 7.0

        async with asyncio.timeout(100) as bound:
            passed_on = PassedOn(feed, bound)
            before = bound.when()
            passed_on.extend(b"abc")
            after = bound.when()
            await asyncio.sleep(0)
        assert before is not None
        assert after is not None
        assert passed_on == b""
        return after - before, bytes(got)

    seconds, got = asyncio.run(go())
    assert seconds == pytest.approx(7)
    assert got == b"abc"
