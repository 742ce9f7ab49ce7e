"""The thread that a run continues."""

from pathlib import Path

from steadyhand.runner.codex.threads import find_thread

OLD, NEW = "01a22edc-ac34-79d1-835a-8a9fd339a28d", "01a22ede-c1c2-70b3-ae15-2fbba6c04945"


def make_thread(config: Path, day: str, at: str, thread: str) -> None:
    folder = config / "sessions" / day
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"rollout-{at}-{thread}.jsonl").touch()


def test_a_run_continues_the_thread_of_its_job_or_else_the_newest(tmp_path: Path) -> None:
    make_thread(tmp_path, "2026/11/29", "2026-11-29T23-49-03", OLD)
    make_thread(tmp_path, "2026/11/30", "2026-11-30T00-01-02", NEW)
    assert find_thread(tmp_path, OLD) == OLD
    assert find_thread(tmp_path, None) == NEW
    assert find_thread(tmp_path, "5e3f0000-0000-4000-8000-000000000000") == NEW, "its run was killed"


def test_without_a_thread_a_new_one_begins(tmp_path: Path) -> None:
    assert find_thread(tmp_path, OLD) is None
    make_thread(tmp_path, "2026/11/30", "2026-11-30T00-01-02", "no-id")
    assert find_thread(tmp_path, OLD) is None
