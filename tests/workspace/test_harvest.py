import asyncio
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from steadyhand.ports import Checkout, Harvest
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import Repository, make_repository, run_as_agent, run_shell
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts, harvest_context
from steadyhand.workspace import git_index as staging

Work = Callable[[Checkout], None]


@pytest.fixture(scope="module")
def world() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def repository(world: Path) -> Repository:
    """Return the repository of all jobs here."""
    return make_repository(world / "repository")


@pytest.fixture(scope="module")
def checkouts(world: Path) -> GitCheckouts:
    """Return the checkouts of all jobs here, of which none may do anything to another."""
    (world / "data").mkdir()
    return GitCheckouts(world / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION)


def after(checkouts: GitCheckouts, repository: Repository, work: str | Work) -> tuple[Checkout, Harvest]:
    """Give the place and the harvest after an agent did this."""

    async def run() -> tuple[Checkout, Harvest]:
        place = await checkouts.prepare(make_job(), repository.workspace(), 0)
        if isinstance(work, str):
            run_as_agent(place, work)
        else:
            work(place)
        return place, await checkouts.harvest(place)

    return asyncio.run(run())


def codes(harvest: Harvest) -> list[str]:
    return [notice.code for notice in harvest.warnings]


def diff_of(place: Checkout) -> str:
    return place.paths.diff.read_text(encoding="utf-8", errors="surrogateescape")


@pytest.mark.parametrize(
    "harm",
    [
        "rm -rf .git && mkfifo .git",
        "find .git -type f | xargs -n1 chmod u+w; for f in $(find .git -type f); do echo x > $f; done",
        *(
            pytest.param(harm, marks=pytest.mark.long)
            for harm in (
                "rm -rf .git",
                "rm .git/HEAD",
                "echo 'gitdir: /nowhere' > x && rm -rf .git && mv x .git",
                "rm -rf .git/objects",
            )
        ),
    ],
)
def test_a_broken_git_directory_costs_the_commits_and_not_the_files(
    checkouts: GitCheckouts, repository: Repository, harm: str
) -> None:
    committed = "echo a > a.txt && git add -A && git commit -qm a && echo b > b.txt && "
    place, harvest = after(checkouts, repository, committed + harm)
    assert harvest.changes is not None
    assert harvest.changes.files == 2
    assert codes(harvest) == ["harvest_partial"]
    assert "b/a.txt" in diff_of(place)
    assert "b/b.txt" in diff_of(place)
    run_shell("git fsck --strict", checkouts.mirrors.get(str(repository.folder)).folder)


def test_a_pack_with_a_broken_object_is_refused_and_the_files_are_kept(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    # A tree with an entry named '..' is what an import without checks would let in.
    script = (
        "echo evil > evil.txt && blob=$(git hash-object -w evil.txt)\n"
        "entry=$(printf '100644 ..\\0'; printf $blob | sed 's/../\\\\x&/g')\n"
        "python3 - $blob > tree <<'END'\n"
        "import sys; sys.stdout.buffer.write(b'100644 ..\\0' + bytes.fromhex(sys.argv[1]))\n"
        "END\n"
        "tree=$(git hash-object --literally -t tree -w tree) && rm tree\n"
        "commit=$(git commit-tree $tree -p HEAD -m evil) && git update-ref HEAD $commit"
    )
    place, harvest = after(checkouts, repository, script)
    assert codes(harvest) == ["harvest_partial"]
    assert harvest.changes is not None
    assert "b/evil.txt" in diff_of(place)


def test_a_history_that_was_made_anew_is_kept(checkouts: GitCheckouts, repository: Repository) -> None:
    script = "git checkout -q --orphan fresh && git commit -qm 'All anew' && echo x > x.txt"
    place, harvest = after(checkouts, repository, script)
    assert codes(harvest) == []
    assert harvest.changes is not None
    assert harvest.changes.files == 1
    assert place.paths.bundle.is_file()


def test_a_job_that_goes_back_in_history_has_the_reverse_as_its_diff(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    place, harvest = after(checkouts, repository, "git reset -q --hard HEAD~1")
    assert codes(harvest) == []
    assert harvest.changes is not None
    assert harvest.changes.head == repository.head("main~1")
    assert harvest.changes.deletions == 40
    assert not place.paths.bundle.exists()


def test_a_file_that_was_force_added_and_one_no_longer_tracked_stand_as_the_agent_committed_them(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    script = (
        "echo '*.log' > .gitignore && echo kept > kept.log && git add -f kept.log\n"
        "echo 'readme.txt' >> .gitignore && git rm -q --cached readme.txt && git add .gitignore && git commit -qm x"
    )
    place, harvest = after(checkouts, repository, script)
    assert codes(harvest) == []
    assert harvest.changes is not None
    assert harvest.changes.head == run_as_agent(place, "git rev-parse HEAD").strip()
    assert "b/kept.log" in diff_of(place)


def test_hidden_changes_are_seen_whatever_the_agent_says_of_its_index(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    script = (
        "git update-index --assume-unchanged readme.txt && git update-index --skip-worktree src/code.txt\n"
        'stamp=$(stat -c %y readme.txt) && echo TWO > readme.txt && touch -d "$stamp" readme.txt\n'
        "echo changed > src/code.txt"
    )
    place, harvest = after(checkouts, repository, script)
    assert harvest.changes is not None
    assert harvest.changes.files == 2
    assert "+TWO" in diff_of(place)


@pytest.mark.long  # the tests of lost work have one with more inside
def test_repositories_inside_the_checkout_lose_their_history_with_a_note_and_keep_their_files(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    script = (
        "git init -q empty && git init -q inner && cd inner && echo x > x && git add x &&"
        " git -c user.name=a -c user.email=a@b commit -qm x && cd .. && echo y > y.txt"
    )
    place, harvest = after(checkouts, repository, script)
    assert codes(harvest) == ["nested_repository"]
    assert harvest.changes is not None
    assert harvest.changes.files == 2
    assert "b/y.txt" in diff_of(place)
    assert "b/inner/x" in diff_of(place)
    assert ".git/" not in diff_of(place)


def test_files_and_folders_that_the_agent_shut_are_kept_and_stay_shut(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    script = (
        "echo y > y.txt && chmod 000 y.txt && mkdir d && echo z > d/z.txt && chmod 000 d src && mkfifo pipe"
    )
    place, harvest = after(checkouts, repository, script)
    assert codes(harvest) == []
    assert harvest.changes is not None
    assert harvest.changes.files == 2
    assert "b/y.txt" in diff_of(place)
    assert "b/d/z.txt" in diff_of(place)
    assert [(place.directory / name).stat().st_mode & 0o777 for name in ("y.txt", "d", "src")] == [0, 0, 0]


def test_a_file_that_git_takes_under_no_name_is_named(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    place, harvest = after(checkouts, repository, "echo y > y.txt && echo z > 'git~1'")
    assert codes(harvest) == ["harvest_partial"]
    assert "git~1" in harvest.warnings[0].message
    assert "b/y.txt" in diff_of(place)


def test_a_directory_that_became_a_symlink_is_kept_as_one(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    script = "rm -r src && ln -s /etc src && echo x > x.txt"
    place, harvest = after(checkouts, repository, script)
    assert harvest.changes is not None
    assert codes(harvest) == []
    assert "new file mode 120000" in diff_of(place)
    assert "deleted file mode 100644" in diff_of(place)
    assert "root:" not in diff_of(place)


def test_files_that_are_too_large_are_left_out_by_name(
    checkouts: GitCheckouts, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "FILE_BYTES", 1024 * 1024)
    place, harvest = after(
        checkouts, repository, "head -c 2000000 /dev/zero > large.bin && echo small > small.txt"
    )
    assert codes(harvest) == ["files_too_large"]
    assert "large.bin" in harvest.warnings[0].message
    assert "b/small.txt" in diff_of(place)
    assert "large.bin" not in diff_of(place)


def test_a_diff_above_its_cap_is_not_kept_in_part(
    checkouts: GitCheckouts, repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(harvest_context, "DIFF_BYTES", 100_000)
    place, harvest = after(checkouts, repository, "head -c 300000 /dev/urandom > noise.bin")
    assert codes(harvest) == ["diff_too_large"]
    assert harvest.changes is not None
    assert harvest.changes.files == 1
    assert not place.paths.diff.exists()
    assert place.paths.bundle.is_file()


def test_a_harvest_ends_when_its_time_is_over(world_dir: Path, repository: Repository) -> None:
    (world_dir / "data").mkdir()
    checkouts = GitCheckouts(
        world_dir / "data", harvest_seconds=0.001, agent_files=ClaudeFiles(), redactor=NO_REDACTION
    )
    place, harvest = after(checkouts, repository, "echo x > x.txt")
    assert codes(harvest) == ["harvest_failed"]
    assert harvest.changes is None
    assert not (place.paths.root / "harvest").exists()


def test_no_notice_names_a_path_of_this_machine(
    checkouts: GitCheckouts, repository: Repository, world: Path
) -> None:
    _, harvest = after(checkouts, repository, "rm -rf .git/objects && echo x > x.txt")
    assert harvest.warnings
    assert all(str(world) not in notice.message for notice in harvest.warnings)


# --- the transcript ----------------------------------------------------------------------------


def test_the_newest_session_is_kept_and_no_symlink_is_followed(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path
) -> None:
    secret = world_dir / "secret.jsonl"
    secret.write_text("secret\n", encoding="utf-8")
    script = (
        "mkdir -p ../config/projects/p && cd ../config/projects/p && echo old > old.jsonl && echo new > new.jsonl\n"
        "touch -d '2020-01-01' old.jsonl && touch -d '2021-01-01' new.jsonl\n"
        f"ln -s {secret} z.jsonl && mkfifo fifo.jsonl && echo sub > agent-1.jsonl && ln -s {world_dir} ../link"
    )
    place, harvest = after(checkouts, repository, script)
    assert codes(harvest) == []
    assert place.paths.transcript.read_text(encoding="utf-8") == "new\n"


def test_a_config_directory_that_was_turned_into_a_symlink_keeps_nothing(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path
) -> None:
    other = world_dir / "other" / "p"
    other.mkdir(parents=True)
    (other / "s.jsonl").write_text("not yours\n", encoding="utf-8")
    place, _ = after(checkouts, repository, f"ln -s {other.parent} ../config/projects")
    assert not place.paths.transcript.exists()


# --- a .git that was made to run something -----------------------------------------------------

TAINTS = {
    "fsmonitor": "git config core.fsmonitor $HOOK",
    "include": "printf '[core]\\n fsmonitor = %s\\n' $HOOK > ../home/inc; git config include.path $HOME/inc",
    "external diff": "git config diff.external $HOOK",
    "diff driver": (
        "git config diff.evil.command $HOOK; git config diff.evil.textconv $HOOK; echo '* diff=evil' > .gitattributes"
    ),
    "filter": (
        "git config filter.evil.clean $HOOK; git config filter.evil.process $HOOK;"
        " git config filter.evil.required true; echo '* filter=evil' > .gitattributes"
    ),
    "hooks path": (
        "git config core.hooksPath $HOME/hooks; mkdir $HOME/hooks;"
        " for h in pre-commit post-commit post-index-change reference-transaction commit-msg; do"
        " cp $HOOK $HOME/hooks/$h; cp $HOOK .git/hooks/$h; done"
    ),
    "gpg": "git config gpg.program $HOOK; git config commit.gpgSign true",
    "ssh": "git config core.sshCommand $HOOK; git config remote.origin.url ssh://localhost/x",
    "uploadpack": "git config uploadpack.packObjectsHook $HOOK; git config remote.origin.uploadpack $HOOK",
    "promisor": (
        "git config core.sshCommand $HOOK; git config extensions.partialClone origin;"
        " git config core.repositoryformatversion 1;"
        " git config remote.origin.url ssh://localhost/x; git config remote.origin.promisor true;"
        " f=$(git rev-parse HEAD:readme.txt); git unpack-objects < $(ls .git/objects/pack/*.pack | head -1) || true"
    ),
    "credential helper": 'git config credential.helper "!$HOOK"',
    "alias": 'for a in add commit status bundle diff log; do git config alias.$a "!$HOOK"; done',
    "submodule": (
        "git init -q sub; (cd sub; git config user.name a; git config user.email a@b; echo x > x; git add x;"
        " git commit -qm x; git config core.fsmonitor $HOOK); git add sub"
    ),
    "pager and editor": "git config core.pager $HOOK; git config core.editor $HOOK; git config pager.diff $HOOK",
    "alternate refs": "git config core.alternateRefsCommand $HOOK; git config pack.packObjectsHook $HOOK",
    "trailers and merges": "git config merge.evil.driver $HOOK; git config trailer.x.command $HOOK",
}


TOGETHER = [
    "fsmonitor, external diff, gpg, ssh",
    "hooks path, uploadpack, alias, pager and editor, diff driver",
    "submodule, include, credential helper, alternate refs, trailers and merges",
    "filter",
    "promisor",
]
"""All of them, as many at once as do not touch each other; one by one in `make test-long`."""


def test_each_taint_is_among_those_that_are_tried_together() -> None:
    assert sorted(each for taint in TOGETHER for each in taint.split(", ")) == sorted(TAINTS)


@pytest.mark.parametrize(
    "taint",
    [
        *TOGETHER,
        *(pytest.param(each, marks=pytest.mark.long) for each in TAINTS if each not in TOGETHER),
    ],
)
def test_a_tainted_git_directory_runs_nothing_as_the_service(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path, taint: str
) -> None:
    commands = "\n".join(TAINTS[each] for each in taint.split(", "))
    marks = world_dir / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    hook = world_dir / "hook"
    # It answers like a filter, so that what runs it goes on; each run leaves a file of its uid.
    hook.write_text(f'#!/bin/sh\ntouch "{marks}/$(id -u)-$$"\ncat 2>/dev/null\n', encoding="utf-8")
    hook.chmod(0o755)

    def work(place: Checkout) -> None:
        run_as_agent(
            place,
            "mkdir -p .git/hooks && git config core.checkStat default && echo x > x.txt && git add x.txt",
        )
        run_as_agent(place, f"HOOK={hook}\n{commands}\necho more >> readme.txt")
        for mark in marks.iterdir():
            mark.unlink()  # what the agent itself set off

    place, harvest = after(checkouts, repository, work)
    runs = [path.stat().st_uid for path in marks.iterdir()]
    assert runs == []
    assert harvest.changes is not None
    assert "+more" in diff_of(place)
    asyncio.run(checkouts.release(place))
    assert list(marks.iterdir()) == []


def test_the_hook_of_the_tainted_tests_does_run_when_git_is_asked_without_care(
    checkouts: GitCheckouts, repository: Repository, world_dir: Path
) -> None:
    marks = world_dir / "marks"
    marks.mkdir()
    marks.chmod(0o777)
    hook = world_dir / "hook"
    hook.write_text(f'#!/bin/sh\ntouch "{marks}/$(id -u)-$$"\ncat 2>/dev/null\n', encoding="utf-8")
    hook.chmod(0o755)
    place, _ = after(checkouts, repository, f"git config core.fsmonitor {hook}")
    run_shell("git -c safe.directory='*' status > /dev/null", place.directory)
    assert [path.stat().st_uid for path in marks.iterdir()] != []


@pytest.mark.skipif(os.geteuid() != 0, reason="agents have a uid of their own only under root")
def test_an_agent_reaches_neither_the_mirror_nor_another_job_nor_what_is_kept(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    async def run() -> None:
        first = await checkouts.prepare(make_job(), repository.workspace(), 0)
        run_as_agent(first, "echo secret > secret.txt")
        await checkouts.harvest(first)
        second = await checkouts.prepare(make_job(), repository.workspace(), 1)
        mirror = checkouts.mirrors.get(str(repository.folder)).folder
        root = first.paths.root
        for path in (
            mirror,
            mirror / "HEAD",
            first.directory / "secret.txt",
            first.paths.diff,
            root / "base.index",
        ):
            assert path.exists()
            assert (
                run_as_agent(second, f"cat {path} 2>/dev/null || ls {path}/ 2>/dev/null || echo closed")
                == "closed\n"
            )
        jobs = root.parent
        assert run_as_agent(second, f"ls {jobs} 2>/dev/null || echo closed") == "closed\n"
        assert run_as_agent(second, f"touch {root}/x 2>/dev/null || echo closed") == "closed\n"
        assert run_as_agent(second, "touch ../x 2>/dev/null || echo closed") == "closed\n"

    asyncio.run(run())


def test_no_object_of_a_checkout_is_a_hard_link_into_the_mirror(
    checkouts: GitCheckouts, repository: Repository
) -> None:
    place, _ = after(checkouts, repository, "true")
    files = [path for path in (place.directory / ".git" / "objects").rglob("*") if path.is_file()]
    assert files
    assert {path.stat().st_nlink for path in files} == {1}
    assert not (place.directory / ".git" / "objects" / "info" / "alternates").exists()


@pytest.mark.long
def test_a_thousand_new_files_are_all_kept(checkouts: GitCheckouts, repository: Repository) -> None:
    script = "mkdir many && cd many && i=0; while [ $i -lt 1000 ]; do echo $i > f$i; i=$((i+1)); done"
    place, harvest = after(checkouts, repository, script)
    assert codes(harvest) == []
    assert harvest.changes is not None
    assert harvest.changes.files == 1000
    assert diff_of(place).count("new file mode") == 1000
