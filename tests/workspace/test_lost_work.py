"""What an agent left beside its branch and its files is kept, and what it did not change is no change."""

from pathlib import Path

import pytest
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts, run_async

from steadyhand.job import Changes, RefChange
from steadyhand.ports import Checkout, Harvest
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import Repository, run_as_agent, run_shell
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts

SEALED = pytest.param("sealed", id="in the sandbox")
SEALED_AT_LENGTH = pytest.param("sealed", id="in the sandbox", marks=pytest.mark.long)
PLAIN = pytest.param("plain", id="without a sandbox")
PLAIN_AT_LENGTH = pytest.param("plain", id="without a sandbox", marks=pytest.mark.long)
in_the_sandbox = pytest.mark.parametrize("hands", [SEALED, PLAIN_AT_LENGTH], indirect=True)
"""For a part of the tests: the same code of the harvest runs inside the sandbox and, in half the time, without one."""
JOB = "0123456789ab"


class Hands:
    """An agent's hands in a checkout, with a sandbox or without; each asks for a branch."""

    def __init__(self, world: Path, level: str) -> None:
        self.world = world
        self._sealed = SandboxedCheckouts(world) if level == "sealed" else None
        if self._sealed is None:
            (world / "data").mkdir()
            self.checkouts = GitCheckouts(
                world / "data", debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION
            )
        else:
            self.checkouts = self._sealed.checkouts

    def resume(self, repository: Repository, script: str, setup: tuple[str, ...] = ()) -> str:
        """Give what an agent printed in a new checkout with the work of the run before."""

        async def go() -> str:
            job = make_job(id=JOB, publish="branch", begin="resume")
            place = await self.checkouts.prepare(job, repository.workspace(setup=setup), 0)
            assert place.warnings == ()
            return (
                run_as_agent(place, script)
                if self._sealed is None
                else await self._sealed.run_as_agent(place, script)
            )

        return run_async(go())

    def work(self, repository: Repository, script: str) -> tuple[Checkout, Harvest]:
        """Give the place and the harvest after an agent did this."""

        async def go() -> tuple[Checkout, Harvest]:
            job = make_job(id=JOB, publish="branch")
            place = await self.checkouts.prepare(job, repository.workspace(), 0)
            if self._sealed is None:
                run_as_agent(place, script)
            else:
                await self._sealed.run_as_agent(place, script)
            return place, await self.checkouts.harvest(place)

        return run_async(go())


@pytest.fixture(params=[SEALED_AT_LENGTH, PLAIN])
def hands(world_dir: Path, request: pytest.FixtureRequest) -> Hands:
    return Hands(world_dir, request.param)


def codes(harvest: Harvest) -> list[str]:
    return [warning.code for warning in harvest.warnings]


def changes_of(harvest: Harvest) -> Changes:
    assert harvest.changes is not None, harvest.warnings
    return harvest.changes


def refs_of(harvest: Harvest) -> dict[str, RefChange]:
    return {each.name: each for each in changes_of(harvest).refs}


class Bundle:
    """A bundle that somebody fetched into a clone of the repository."""

    def __init__(self, repository: Repository, place: Checkout) -> None:
        self.folder = repository.folder.parent / "fetched"
        run_shell(f"git clone -q {repository.folder} {self.folder}", repository.folder.parent)
        self.git(f"fetch -q {place.paths.bundle} '+refs/*:refs/*'")

    def git(self, arguments: str) -> str:
        return run_shell(f"git {arguments}", self.folder)

    def show(self, change: RefChange, path: str) -> str:
        return self.git(f"show {change.bundle_ref}:{path}")


def pushed_tree(repository: Repository, place: Checkout) -> str:
    """Give the names in the pushed tree, after a comparison with what the diff makes."""
    clone = repository.folder.parent / "reviewed"
    run_shell(f"git clone -q {repository.folder} {clone}", repository.folder.parent)
    run_shell(f"git apply --index {place.paths.diff}", clone)
    pushed = repository.run(f"git rev-parse steadyhand/{JOB}^{{tree}}")
    assert run_shell("git write-tree", clone) == pushed
    return repository.run(f"git ls-tree -r --name-only steadyhand/{JOB}")


# --- beside the branch -------------------------------------------------------------------------


def test_a_branch_that_was_left_again_and_a_tag_are_listed_and_in_the_bundle(
    hands: Hands, repository: Repository
) -> None:
    script = (
        "git checkout -q -b attempt && echo a > a.txt && git add -A && git commit -qm a && git checkout -q -\n"
        "git tag -a v2 -m v2 && git update-ref refs/remotes/origin/side HEAD && git tag -d v1 && git tag same HEAD~1"
    )
    place, harvest = hands.work(repository, script)
    assert harvest.warnings == ()
    changes, refs = changes_of(harvest), refs_of(harvest)
    assert (changes.files, changes.head, changes.published) == (0, changes.base, False)
    assert {name: each.change for name, each in refs.items()} == {
        "refs/heads/attempt": "created", "refs/tags/v2": "created", "refs/remotes/origin/side": "moved",
        "refs/tags/v1": "deleted", "refs/tags/same": "created",
    }  # fmt: skip
    assert refs["refs/remotes/origin/side"].before == repository.head("side")
    assert refs["refs/tags/v1"].after is None
    # The job was given what these reach.
    assert refs["refs/tags/same"].bundle_ref is None
    assert refs["refs/remotes/origin/side"].bundle_ref is None
    assert refs["refs/heads/attempt"].bundle_ref == f"refs/steadyhand/jobs/{JOB}/heads/attempt"
    bundle = Bundle(repository, place)
    assert bundle.show(refs["refs/heads/attempt"], "a.txt") == "a\n"
    assert bundle.git(f"cat-file -t {refs['refs/tags/v2'].bundle_ref}") == "tag\n"
    assert f"steadyhand/{JOB}" not in repository.run("git branch --list")


@in_the_sandbox
def test_the_stash_and_files_that_were_added_by_force_are_in_the_bundle_and_never_pushed(
    hands: Hands, repository: Repository
) -> None:
    script = (
        "echo first >> readme.txt && git stash -q && echo second >> readme.txt && echo u > u.txt && git stash -qu\n"
        "echo '*.key' > .gitignore && echo secret > a.key && git add -f a.key && echo later > a.key && echo x > x.txt"
    )
    place, harvest = hands.work(repository, script)
    assert harvest.warnings == ()
    assert changes_of(harvest).files == 2
    refs = refs_of(harvest)
    assert set(refs) == {"stash@{0}", "stash@{1}", "index", "forced"}
    bundle = Bundle(repository, place)
    assert bundle.show(refs["stash@{0}"], "readme.txt").endswith("second\n")
    assert bundle.git(f"show {refs['stash@{0}'].after}^3:u.txt") == "u\n"
    assert bundle.show(refs["stash@{1}"], "readme.txt").endswith("first\n")
    assert bundle.show(refs["index"], "a.key") == "secret\n"
    assert bundle.show(refs["forced"], "a.key") == "later\n"
    assert pushed_tree(repository, place).split() == [".gitignore", "readme.txt", "src/code.txt", "x.txt"]
    assert repository.run("git for-each-ref refs/steadyhand refs/stash") == ""


def test_replaced_objects_are_refused_by_name_and_change_nothing_else(
    hands: Hands, repository: Repository
) -> None:
    script = (
        "echo a > a.txt && git add -A && git commit -qm a && echo b > b.txt && git add -A && git commit -qm b\n"
        "git replace HEAD~1 HEAD~2"
    )
    place, harvest = hands.work(repository, script)
    assert codes(harvest) == ["harvest_partial"]
    assert "refs/replace/" in harvest.warnings[0].message
    assert [each.bundle_ref for each in changes_of(harvest).refs] == [None]
    assert "a.txt" in pushed_tree(repository, place)


def test_more_refs_than_the_bound_are_counted(hands: Hands, repository: Repository) -> None:
    place, harvest = hands.work(
        repository,
        'for n in $(seq 230); do echo "create refs/heads/b$n HEAD~1"; done | git update-ref --stdin',
    )
    changes = changes_of(harvest)
    assert (len(changes.refs), changes.refs_omitted) == (200, 30)
    assert codes(harvest) == ["harvest_partial"]
    assert not place.paths.bundle.exists()


def test_an_index_in_conflict_is_named_and_the_files_are_kept(hands: Hands, repository: Repository) -> None:
    script = (
        "git checkout -q -b other && echo o > readme.txt && git commit -qam o && git checkout -q -\n"
        "echo p > readme.txt && git commit -qam p && ! git merge -q other"
    )
    place, harvest = hands.work(repository, script)
    assert codes(harvest) == ["harvest_partial"]
    assert "conflicts in readme.txt" in harvest.warnings[0].message
    assert "refs/heads/other" in refs_of(harvest)
    assert "<<<<<<<" in place.paths.diff.read_text(encoding="utf-8")


def test_a_later_turn_finds_the_branches_the_tags_and_the_stash_of_the_run_before(
    hands: Hands, repository: Repository
) -> None:
    script = (
        "git checkout -q -b attempt && echo a > a.txt && git add -A && git commit -qm a && git tag v2\n"
        "git checkout -q - && echo first >> readme.txt && git stash -q && echo second >> readme.txt && git stash -q"
    )
    place, _ = hands.work(repository, script)
    run_async(hands.checkouts.release(place))
    told = hands.resume(
        repository, "git show attempt:a.txt v2:a.txt && git stash list | wc -l && git stash show -p"
    )
    assert told.startswith("a\na\n2\n")
    assert "+second" in told


@pytest.mark.parametrize("hands", [SEALED], indirect=True)  # setup commands need a sandbox
def test_a_later_turn_finds_it_in_a_repository_whose_configuration_rewrites_addresses(
    hands: Hands, repository: Repository
) -> None:
    script = (
        "git checkout -q -b attempt && echo a > a.txt && git add -A && git commit -qm a && git checkout -q -"
    )
    place, _ = hands.work(repository, f"{script}\necho s >> readme.txt && git stash -q; echo b > b.txt")
    run_async(hands.checkouts.release(place))
    rewrite = "git config url.https://mirror.example/.insteadOf /"
    told = hands.resume(
        repository, "cat b.txt && git show attempt:a.txt && git stash show -p", setup=(rewrite,)
    )
    assert told.startswith("b\na\n")
    assert "+s\n" in told


# --- repositories in the checkout --------------------------------------------------------------


def test_the_files_of_nested_repositories_are_kept_without_their_git_directories(
    hands: Hands, repository: Repository
) -> None:
    commit = "git -c user.name=a -c user.email=a@b commit -qm x"
    script = (
        f"git init -q inner && cd inner && echo x > x.txt && git add -A && {commit} && echo y > y.txt\n"
        "echo '*.o' > .gitignore && echo o > o.o && git init -q deep/er && echo z > deep/er/z.txt\n"
        "cd .. && echo '*.tmp' > .gitignore && echo t > inner/t.tmp"
    )
    place, harvest = hands.work(repository, script)
    assert codes(harvest) == ["nested_repository"]
    assert "inner/, inner/deep/er/" in harvest.warnings[0].message
    names = set(pushed_tree(repository, place).split())
    assert names - {"readme.txt", "src/code.txt"} == {
        ".gitignore", "inner/.gitignore", "inner/x.txt", "inner/y.txt", "inner/deep/er/z.txt",
    }  # fmt: skip


def test_a_work_tree_of_its_own_is_kept_beside_the_branch_with_its_changes(
    hands: Hands, repository: Repository
) -> None:
    script = (
        "git worktree add -q wt -b feature && cd wt && echo c > c.txt && git add -A && git commit -qm c\n"
        "echo d > d.txt && cd .. && git worktree add -q --detach $HOME/other && echo e > $HOME/other/e.txt"
    )
    place, harvest = hands.work(repository, script)
    assert harvest.warnings == ()
    assert changes_of(harvest).files == 0
    refs = refs_of(harvest)
    assert {each.kind for each in refs.values()} == {"ref", "worktree"}
    bundle = Bundle(repository, place)
    assert bundle.show(refs["refs/heads/feature"], "c.txt") == "c\n"
    assert bundle.show(refs["wt"], "d.txt") == "d\n"
    assert bundle.git(f"rev-parse {refs['wt'].bundle_ref}^").strip() == refs["refs/heads/feature"].after
    assert bundle.show(refs["other"], "e.txt") == "e\n"


@pytest.mark.parametrize(
    "move",
    [
        pytest.param(
            "mv .git .real && echo 'gitdir: .real' > .git", id="into the tree", marks=pytest.mark.long
        ),
        pytest.param('mv .git $HOME/real && echo "gitdir: $HOME/real" > .git', id="into the home"),
        pytest.param("chmod 000 .git", id="shut", marks=pytest.mark.long),
        pytest.param("mv .git .real && ln -s .real .git", id="behind a link"),
    ],
)
def test_a_git_directory_that_was_moved_or_shut_costs_nothing(
    hands: Hands, repository: Repository, move: str
) -> None:
    place, harvest = hands.work(
        repository, f"echo a > a.txt && git add -A && git commit -qm Mine && echo b > b.txt && {move}"
    )
    assert harvest.warnings == ()
    assert pushed_tree(repository, place).split() == ["a.txt", "b.txt", "readme.txt", "src/code.txt"]
    assert "Mine" in repository.run(f"git log --format=%s steadyhand/{JOB}")


@pytest.fixture
def with_submodule(repository: Repository) -> Repository:
    repository.run(
        "git update-index --add --cacheinfo 160000,1111111111111111111111111111111111111111,sub\n"
        "printf '[submodule \"sub\"]\\n\\tpath = sub\\n\\turl = ../sub\\n' > .gitmodules\n"
        "git add .gitmodules && git commit -qm 'A submodule' && mkdir -p sub"
    )
    return repository


def test_a_file_in_the_folder_of_a_submodule_is_kept_beside_the_branch(
    hands: Hands, with_submodule: Repository
) -> None:
    place, harvest = hands.work(with_submodule, "echo in > sub/in.txt")
    assert changes_of(harvest).files == 0
    (change,) = changes_of(harvest).refs
    assert (change.kind, change.name) == ("submodule", "sub")
    assert Bundle(with_submodule, place).show(change, "in.txt") == "in\n"


def test_a_submodule_that_was_vendored_becomes_files(hands: Hands, with_submodule: Repository) -> None:
    script = "git rm -q --cached sub && git init -q sub && echo in > sub/in.txt"
    place, harvest = hands.work(with_submodule, script)
    assert codes(harvest) == ["nested_repository"]
    assert "sub/in.txt" in pushed_tree(with_submodule, place)
    assert with_submodule.run(f"git ls-tree steadyhand/{JOB} sub").startswith("040000 tree")


@in_the_sandbox
def test_the_work_in_a_submodule_is_kept_and_its_moved_commit_is_in_the_diff(
    hands: Hands, with_submodule: Repository
) -> None:
    script = (
        "git init -q sub && cd sub && echo n > n.txt && git add -A\n"
        "git -c user.name=a -c user.email=a@b commit -qm n && echo m > m.txt"
    )
    place, harvest = hands.work(with_submodule, script)
    assert codes(harvest) == []
    (change,) = changes_of(harvest).refs
    bundle = Bundle(with_submodule, place)
    assert [bundle.show(change, name) for name in ("n.txt", "m.txt")] == ["n\n", "m\n"]
    assert bundle.git(f"log -1 --format=%s {change.bundle_ref}^") == "n\n"
    assert "+Subproject commit" in place.paths.diff.read_text(encoding="utf-8")


# --- files that git cannot take, or takes for changes --------------------------------------------


def test_a_file_that_git_cannot_encode_costs_no_other_and_is_kept_as_it_is(
    hands: Hands, repository: Repository
) -> None:
    script = (
        "echo 'x.txt text working-tree-encoding=UTF-16' > .gitattributes && git add -A && git commit -qm Mine\n"
        "printf hello > x.txt && for n in $(seq 40); do echo $n > f$n; done"
    )
    place, harvest = hands.work(repository, script)
    assert codes(harvest) == ["files_unencoded"]
    assert "x.txt" in harvest.warnings[0].message
    assert changes_of(harvest).files == 42
    assert repository.run(f"git show steadyhand/{JOB}:x.txt") == "hello"
    assert "Mine" in repository.run(f"git log --format=%s steadyhand/{JOB}")
    assert len(pushed_tree(repository, place).split()) == 44


def test_a_hostile_list_of_submodules_costs_no_other_file(hands: Hands, repository: Repository) -> None:
    script = "printf '[submodule \"a\"]\\n\\tpath = a\\n\\turl = -evil\\n' > .gitmodules && echo y > y.txt"
    place, harvest = hands.work(repository, script)
    assert codes(harvest) == ["harvest_partial"]
    assert ".gitmodules" in harvest.warnings[0].message
    assert pushed_tree(repository, place).split() == ["readme.txt", "src/code.txt", "y.txt"]


@pytest.fixture
def converted(repository: Repository) -> Repository:
    """A repository whose files git would convert: lines in CRLF under `text`, encodings, keywords."""
    repository.run(
        "printf 'a\\r\\nb\\r\\n' > dos.txt && printf 'x\\ny\\n' > w.bat && printf '$Id$\\n' > i.id && git add -A\n"
        "git update-index --add --cacheinfo 100644,$(echo hi | git hash-object -w --stdin),u.u16\n"
        "git commit -qm 'As they are'\n"
        "printf '*.txt text\\n*.bat text eol=crlf\\n*.id ident\\n*.u16 text working-tree-encoding=UTF-16\\n'"
        " > .gitattributes\n"
        "git add .gitattributes && git commit -qm Attributes && git checkout -q HEAD -- ."
    )
    return repository


@pytest.mark.parametrize(
    "touch",
    [
        pytest.param("true", marks=pytest.mark.long),
        "for f in *.*; do cp -p $f copy && rm $f && mv copy $f && touch $f; done",
    ],
)
def test_a_job_that_changed_nothing_has_no_changes_whatever_git_would_convert(
    hands: Hands, converted: Repository, touch: str
) -> None:
    _, harvest = hands.work(converted, touch)
    assert harvest == Harvest(None, ())
    assert "steadyhand" not in converted.run("git branch --list")


def test_only_the_files_that_were_changed_are_in_the_branch(hands: Hands, converted: Repository) -> None:
    place, harvest = hands.work(
        converted, "touch dos.txt w.bat && echo more >> src/code.txt && printf 'x\\r\\nz\\r\\n' > w.bat"
    )
    assert harvest.warnings == ()
    assert changes_of(harvest).files == 2
    pushed_tree(converted, place)
    assert converted.run(f"git show steadyhand/{JOB}:w.bat") == "x\nz\n"
    assert converted.run(f"git diff --name-only main steadyhand/{JOB}").split() == ["src/code.txt", "w.bat"]


# --- what generated histories found --------------------------------------------------------------

INNER = "git init -q . && echo inner > inner.md && git add -A && git commit -qm Inner"


def test_the_commits_of_a_repository_that_the_agent_committed_as_a_submodule_are_kept(
    hands: Hands, repository: Repository
) -> None:
    name = "export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b"
    script = (
        f"{name} && mkdir lib && (cd lib && {INNER} && git rev-parse HEAD > ../id.txt && mkdir deeper && cd deeper"
        f" && {INNER}) && git add lib && git commit -qm Embedded"
    )
    place, harvest = hands.work(repository, script)
    commit = repository.run(f"git show steadyhand/{JOB}:id.txt").strip()
    assert repository.run(f"git rev-parse steadyhand/{JOB}:lib").strip() == commit
    saved = refs_of(harvest)["lib"]
    assert saved.kind == "submodule"
    bundle = Bundle(repository, place)
    assert bundle.git(f"rev-parse {saved.bundle_ref}^").strip() == commit
    assert bundle.show(saved, "inner.md") == "inner\n"
    assert bundle.show(saved, "deeper/inner.md") == "inner\n"


@pytest.mark.parametrize(
    "commit", [pytest.param("true", marks=pytest.mark.long), "echo b >> crlf.auto && git commit -qam b"]
)
def test_the_ends_of_lines_that_git_would_leave_alone_are_left_alone(
    world_dir: Path, repository: Repository, commit: str
) -> None:
    # Under `text=auto` a file whose blob has CRLF keeps them, also if lines without them come to it.
    repository.run("printf 'a\\r\\n' > crlf.auto && git add crlf.auto && git commit -qm CRLF")
    repository.commit(".gitattributes", "*.auto text=auto\n")
    place, harvest = Hands(world_dir, "sealed").work(repository, f"{commit}; echo c >> crlf.auto")
    assert codes(harvest) == []
    assert changes_of(harvest).deletions == 0
    assert "-a" not in place.paths.diff.read_text(encoding="utf-8").split("\n")
    assert repository.run(f"git show steadyhand/{JOB}:crlf.auto").startswith("a\r\n")


def test_the_branch_of_the_job_that_moved_without_it_moved_from_its_base(
    hands: Hands, repository: Repository
) -> None:
    script = "echo x > x && git add x && git commit -qm x && git checkout -q --detach origin/side"
    place, harvest = hands.work(repository, script)
    (saved,) = changes_of(harvest).refs
    assert (saved.change, saved.before) == ("moved", place.commit)
    assert Bundle(repository, place).show(saved, "x") == "x\n"


@in_the_sandbox
def test_what_a_sparse_checkout_takes_away_is_no_deletion(hands: Hands, repository: Repository) -> None:
    place, harvest = hands.work(
        repository, "git sparse-checkout set --no-cone /readme.txt && echo x > new.txt"
    )
    assert codes(harvest) == []
    assert (changes_of(harvest).files, changes_of(harvest).deletions) == (1, 0)
    assert "src/code.txt" in pushed_tree(repository, place)


def test_a_repository_that_is_begun_over_files_of_the_tree_is_named(
    hands: Hands, repository: Repository
) -> None:
    place, harvest = hands.work(repository, "git init -q src && echo x > src/x.txt && cd src && git add -A")
    assert codes(harvest) == ["nested_repository"]
    assert "src/" in harvest.warnings[0].message
    assert "src/x.txt" in pushed_tree(repository, place)


def test_a_file_that_is_only_closed_is_no_change_whatever_its_attributes_say(
    hands: Hands, repository: Repository
) -> None:
    repository.run("printf 'a\\r\\n' > crlf.txt && git add crlf.txt && git commit -qm CRLF")
    repository.commit(".gitattributes", "*.txt text\n")
    _, harvest = hands.work(repository, "chmod 000 crlf.txt")
    assert (harvest.changes, harvest.warnings) == (None, ())
