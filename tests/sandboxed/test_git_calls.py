"""Eleven ways to make a repository run something, against each call of git that the service makes.

The calls are found in the code. For each group of taints a scene of real jobs goes through all of them against
repositories that are tainted so: the one that jobs are made from, its checkouts (by setup and by the agent), what is
left of them, and a directory in place. Sealed off, nothing at all may run outside; a sealed agent's own folder cannot
be seen by what runs inside. At level `none`, where git in an agent's own files runs as the agent's user and what it
left may run with it, nothing runs as the service.

Here one group is played with sealed checkouts over a layer; test_hostile_repository.py and
test_attacks_by_process_mode.py have each group in whole jobs, and tests/workspace/test_harvest.py at level `none`.
`make test-long` plays each group, and each taint alone, with every kind and at both levels.
"""

import ast
import asyncio
import base64
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.sandboxed.git_call_tracing import SOURCES, UNKNOWN_PLACE, GitCallTracer, find_call_sites
from tests.sandboxed.hostile_repository import ATTACKS, TOGETHER, UNSAFE_COMMANDS, AttackMarks
from tests.workspace.git_http_server import GitHttpServer
from tests.workspace.pointers import MODEL, add_submodule, point_elsewhere
from tests.workspace.sandboxed_checkouts import SandboxedCheckouts

from steadyhand.agents import Workspace
from steadyhand.cli.local_repository import pack_changes, read_state
from steadyhand.errors import WorkspaceError
from steadyhand.job import Job, UncommittedChanges
from steadyhand.ports import Checkout
from steadyhand.redact import NO_REDACTION
from steadyhand.runner.claude.files import ClaudeFiles
from steadyhand.testing.contracts.checkouts import (
    DEFINITION,
    Repository,
    make_repository,
    run_as_agent,
    run_shell,
)
from steadyhand.testing.contracts.samples import make_job
from steadyhand.workspace import GitCheckouts
from steadyhand.workspace.doctor import check_workspaces

OWNER = 64_321

MIRROR_CALLS = (
    "mirror._init init",
    "mirror._fetch_all fetch",
    "mirror._fetch_on_demand fetch",
    "mirror._run_fetch upload-pack",
    "mirror._fetch gc",
    "mirror._fetch_commit fetch",
    "mirror._rev_parse rev-parse",
    "mirror._write_refs_file for-each-ref",
    "mirror.is_reached rev-list",
    "mirror.pack_new pack-objects",
    "tree_files.list_tree_files ls-tree",
    "tree_files.read_tree_blobs cat-file",
    "mirror.push push",
    "mirror.push receive-pack",
    "mirror.import_commit fetch",
    "mirror.delete_ref update-ref",
    "mirror.check_reachable ls-remote",
    "mirror.check_reachable upload-pack",
    "doctor._check_git version",
    "external_content.find_external_content ls-tree",
    "external_content._read_config config",
    "external_content._with_lfs_attribute read-tree",
    "external_content._with_lfs_attribute check-attr",
    "external_content._read_blobs cat-file",
    "uncommitted._check_objects index-pack",
    "uncommitted._check_objects cat-file",
    "uncommitted._check_objects merge-base",
    "uncommitted._check_objects ls-tree",
    "uncommitted._check_objects update-ref",
    "uncommitted._check_sizes show-index",
    "uncommitted._check_sizes cat-file",
)
"""The service's own, at both levels."""
IMPORT_CALLS = (
    "harvest_context.write_diff diff",
    "harvest_context.write_diff diff (2)",
    "harvest_import._index_pack index-pack",
    "harvest_import._require rev-parse",
    "harvest_import._type_of cat-file",
    "harvest_import._commit_on rev-parse",
    "harvest_import._commit_tree commit-tree",
    "harvest_results.write update-ref",
    "harvest_results._diff_makes read-tree",
    "harvest_results._diff_makes apply",
    "harvest_results._diff_makes rev-parse",
    "harvest_results._diff_makes write-tree",
    "harvest_results._update_refs update-ref",
    "harvest_results._write_bundle for-each-ref",
    "harvest_results._write_bundle bundle",
    "harvest_results._write_bundle bundle (2)",
    "harvest_results._brings_given_commits rev-list",
)
IN_PLACE_CALLS = ("in_place._is_repository rev-parse", "in_place.head_of rev-parse")
PROGRAM_CALLS = (
    "sandboxed_git.restore_work for-each-ref",
    "sandboxed_git.restore_work update-ref",
    "sandboxed_git.restore_work stash",
    "sandboxed_git.restore_work reset",
    "sandboxed_git._unbundle bundle",
    "sandboxed_commits.__init__ rev-parse",
    "sandboxed_commits.__init__ rev-parse (2)",
    "sandboxed_commits.head rev-parse",
    "sandboxed_commits.head symbolic-ref",
    "sandboxed_commits.head for-each-ref",
    "sandboxed_commits.refs for-each-ref",
    "sandboxed_commits.stashes log",
    "sandboxed_commits.index_tree write-tree",
    "sandboxed_commits._tagged_entries ls-files",
    "sandboxed_commits.pack_new rev-list",
    "sandboxed_commits.pack_parts cat-file",
    "sandboxed_commits.pack_parts pack-objects",
    "sandboxed_compare.compare_in_place rev-parse",
    "sandboxed_compare.compare_in_place rev-parse (2)",
    "sandboxed_compare.compare_in_place rev-parse (3)",
    "sandboxed_compare.compare_in_place read-tree",
    "sandboxed_compare.compare_in_place diff",
    "sandboxed_compare.compare_in_place diff (2)",
    "sandboxed_given.read_given ls-files",
    "sandboxed_given._names_with_attributes check-attr",
    "sandboxed_harvest._index_tree rev-parse",
    "sandboxed_harvest._is_as_given rev-parse",
    "sandboxed_harvest._is_as_given rev-parse (2)",
    "sandboxed_harvest._is_as_given read-tree",
    "sandboxed_harvest._keep_sent index-pack",
    "sandboxed_harvest._open_snapshot read-tree",
    "sandboxed_harvest._send_forced write-tree",
    "sandboxed_harvest._send_snapshot write-tree",
    "sandboxed_harvest._send_snapshot cat-file",
    "sandboxed_harvest._send_submodules cat-file",
    "sandboxed_harvest._send_worktrees rev-parse",
    "sandboxed_harvest._stage_folder write-tree",
    "sandboxed_harvest._worktrees rev-parse",
    "sandboxed_staging._list ls-files",
    "sandboxed_staging._list ls-files (2)",
    "sandboxed_staging._not_ignored check-ignore",
    "sandboxed_staging.entries ls-files",
    "sandboxed_staging.replace_by_files update-index",
    "sandboxed_staging.stage update-index",
    "sandboxed_staging._add update-index",
    "sandboxed_staging._has_only_an_encoding check-attr",
    "sandboxed_staging._add_raw hash-object",
    "sandboxed_staging._add_raw update-index",
)
"""Calls of the program that runs inside the sandbox, or as the agent's user if there is none."""
SEALED_CALLS = (
    "mirror.tree_of rev-parse",
    "sandboxed_commits.names_between diff-tree",
    "submodule_mirror._has rev-parse",
    "submodule_mirror._init init",
    "submodule_mirror._fetch_refs fetch",
    "submodule_mirror._fetch cat-file",
    "submodule_mirror._fetch update-ref",
    "submodules.write_module_dirs fetch",
    "sandboxed_commits.conflicts ls-files",
    "in_place._pull_sandboxed pull",
    "in_place._pull_sandboxed rebase",
    "sandboxed_git.build_checkout checkout",
    "sandboxed_git.build_checkout update-index",
    "sandboxed_git._place_lfs_files config",
    "sandboxed_git._place_lfs_files update-index",
    "sandboxed_git._exclude_setup_files ls-files",
    "sandboxed_git._filters config",
    "sandboxed_git.settle_work symbolic-ref",
    "sandboxed_git.settle_work reset",
    "sandboxed_git.update_refs index-pack",
    "sandboxed_git.update_refs for-each-ref",
    "sandboxed_git.update_refs update-ref",
)
BARE_CALLS = (
    "create._check_out_unsandboxed checkout",
    "refs_update._update_as_agent index-pack",
    "refs_update._update_as_agent for-each-ref",
    "refs_update._update_as_agent update-ref",
    "in_place._pull pull",
    "in_place._abort_rebase rev-parse",
    "in_place._abort_rebase rebase",
)
AS_THE_AGENT = frozenset(
    {
        "in_place._pull pull",
        "in_place._abort_rebase rebase",
        *(call for call in PROGRAM_CALLS if call.startswith(("sandboxed_staging.", "sandboxed_compare."))),
    }
)
"""In a directory in place these may run what its configuration says, as whom the agent runs there."""
SHARED = (*MIRROR_CALLS, *IMPORT_CALLS, *IN_PLACE_CALLS, *PROGRAM_CALLS)
_LEFT = (
    "printf x > e.u16; git init -q inner; echo x > inner/x; mkdir closed; echo x > closed/x; chmod 000 closed;"
    " mkdir -p sub1 sub2 sub3; echo in > sub1/in.txt; echo v > sub3/v;"
    " git init -q sub2;"
    " git -C sub2 -c user.name=a -c user.email=a@b commit --no-gpg-sign -q --allow-empty -m e;"
    " echo stashed >> readme.txt; git stash -q; git update-index --force-remove sub3;"
    " printf '*.log' > .gitignore; echo l > l.log;"
    " git add -f l.log; echo m >> l.log; git worktree add -q wt -b wt; echo w > wt/w.txt; true"
)
"""An agent that leaves something for each call of a harvest."""
_CONFLICT = (
    "b=$(git rev-parse HEAD:readme.txt);"
    " printf '100644 %s 1\\tc\\n100644 %s 2\\tc\\n' $b $b | git update-index --index-info; true"
)
_COMMIT = (
    "echo n > n.txt; git add n.txt; git -c user.name=a -c user.email=a@b commit --no-gpg-sign -q -m n; true"
)
_UNBORN = "git symbolic-ref HEAD refs/heads/none; true"


KINDS = {"overlay": (True, False), "clones": (False, False), "shared objects": (False, True)}
"""The kinds of sealed checkouts: over a layer, clones of their own, and clones that share the mirror's objects."""
ONLY_WITH = {
    "mirror.tree_of rev-parse": "overlay",
    "sandboxed_commits.names_between diff-tree": "overlay",
    "mirror.pack_new pack-objects": "clones",
    "sandboxed_git.update_refs index-pack": "clones",
}
"""Calls that are made for checkouts of one kind alone."""


class Scene:
    """Jobs of one level, in a folder of their own, that go through every call of git."""

    def __init__(self, root: Path, taints: Sequence[str], kinds: Sequence[str]) -> None:
        self.marks = AttackMarks(root)
        self._taint = self.marks.attack_script(*taints) + "; true"
        self._root = root
        self._kinds = kinds
        self.repository = make_repository(root / "repository")
        self.repository.commit(".claude/agents/helper.md", DEFINITION)
        self.repository.commit(
            ".gitattributes",
            "* filter=evil diff=evil merge=evil\n*.u16 -filter working-tree-encoding=UTF-16\n",
        )
        gitlinks = " ".join(f"--cacheinfo 160000,{'1' * 40},sub{number}" for number in (1, 2, 3))
        self.repository.run(f"git update-index --add {gitlinks} && git commit -qm submodules")
        self._pulled, *self._foreign = [self._make_pull_request(number) for number in range(4)]
        self.direct = Repository(root / "direct")
        run_shell(f"git clone -q {self.repository.folder} {self.direct.folder}", root)
        self._half_done = root / "half-done"
        self._leave_a_rebase_half_done()
        self._uncommitted = self._pack_uncommitted()
        self._with_pointers = Repository(root / "with-pointers")
        run_shell(f"git clone -q {self.repository.folder} {self._with_pointers.folder}", root)
        point_elsewhere(self._with_pointers)
        run_shell(f"mkdir served; git clone -q --bare {self.repository.folder} served/lib.git", root)
        self._server = GitHttpServer(root / "served")
        self._server.refuses_ids = True
        url, pinned = f"{self._server.url}/lib.git", self.repository.head("HEAD~1")
        add_submodule(self._with_pointers, "libs/served", url, pinned)
        self._server.lfs = {hashlib.sha256(MODEL).hexdigest(): MODEL}
        self._with_pointers.run(f"git config -f .lfsconfig lfs.url {url}/info/lfs; git add .lfsconfig")
        self._with_pointers.run("git -c user.name=A -c user.email=a@example.org commit -qm served")
        for each in (self.repository, self.direct, self._with_pointers):
            each.run(self._taint)
            run_shell(f"chown -R {OWNER}:{OWNER} {each.folder}", root)
        self.marks.take_marks()

    def _make_pull_request(self, number: int) -> str:
        return self.repository.run(
            f"git update-ref refs/pull/{number}/head $(git commit-tree HEAD^{{tree}} -p HEAD -m {number})"
            f" && git rev-parse refs/pull/{number}/head"
        ).strip()

    def _push_a_branch(self) -> None:
        """Push what a pull request holds as a branch, without a git that would run the taint."""
        commit = self._foreign.pop()
        (self.repository.folder / ".git" / "refs" / "heads" / f"later-{commit}").write_text(f"{commit}\n")

    def _leave_a_rebase_half_done(self) -> None:
        self.direct.run(
            "git config user.name Bob; git config user.email bob@example.org; git checkout -q -b other HEAD~1;"
            " echo other > readme.txt; git commit -qam other; git checkout -q main; echo main > readme.txt;"
            f" git commit -qam main; git rebase -q other || true; cp -r .git/rebase-merge {self._half_done};"
            " git rebase --abort"
        )

    def _pack_uncommitted(self) -> UncommittedChanges:
        """What a caller sends of a clone of its own, before anything is tainted."""
        self.repository.run("echo changed > new.txt")
        state = read_state(self.repository.folder)
        assert state is not None
        packed = pack_changes(state, is_local=True)
        assert packed is not None
        self.repository.run("rm new.txt")
        return UncommittedChanges(packed.base, packed.commit, base64.b64encode(packed.pack).decode())

    async def play(self) -> None:
        with self._server:
            await self._play()

    async def _play(self) -> None:
        data = self._root / "data"
        for overlay, shares in [KINDS[kind] for kind in self._kinds]:
            made = SandboxedCheckouts(self._root, overlay=overlay, shares_objects=shares)
            await self._jobs(made.checkouts, made)
        if not self._kinds:
            data.mkdir()
            await self._jobs(
                GitCheckouts(data, debounce_seconds=0, agent_files=ClaudeFiles(), redactor=NO_REDACTION), None
            )

    async def _jobs(self, checkouts: GitCheckouts, hands: SandboxedCheckouts | None) -> None:
        setup = (self._taint,) if hands is not None else ()
        workspace = self.repository.workspace(setup=setup)
        direct = self.direct.workspace(mode="in_place")
        await check_workspaces(self._root / "data", checkouts.mirrors, [workspace, direct])
        await checkouts.agent_definitions(workspace)
        with contextlib.suppress(WorkspaceError):
            await checkouts.prepare(make_job(ref="0123456789" * 4), workspace, 0)
        job = make_job(publish="branch")
        await self._work(checkouts, hands, job, workspace, _LEFT)
        if hands is not None:
            # A commit whose changed paths the layer tells, without the submodules of later commits.
            place = await checkouts.prepare(make_job(ref="v1"), self.repository.workspace(), 1)
            await self._does(hands, place, _COMMIT)
            await checkouts.harvest(place)
            await self._does(hands, place, self._taint)
            kept = await checkouts.take_back(place, "warm-kept")  # for a turn that goes on in it
            await checkouts.release(kept or place)
        # What was harvested is put back, and worked on once more, with what the first run left.
        for again, left in ((workspace, _CONFLICT), (self.repository.workspace(), _UNBORN)):
            await self._work(checkouts, hands, replace(job, begin="resume"), again, left)
        changed = make_job(uncommitted=self._uncommitted, ref=self._uncommitted.ref)
        await checkouts.release(await checkouts.prepare(changed, workspace, 1))
        await checkouts.delete_job(changed.id)
        pointers = self._with_pointers.workspace(submodules=True, lfs=True, fetch_hosts=(self._server.host,))
        await checkouts.release(await checkouts.prepare(make_job(), pointers, 1))
        await self._continue_in_a_kept_checkout(checkouts, hands)
        await self._work(checkouts, hands, make_job(ref=self._pulled), workspace)
        await self._work(checkouts, hands, make_job(ref="pull/0/head"), workspace)
        await self._work(checkouts, hands, make_job(), direct)
        run_shell(
            f"cp -r {self._half_done} .git/rebase-merge; chown -R {OWNER}:{OWNER} .git", self.direct.folder
        )
        await self._work(checkouts, hands, make_job(), direct)
        await checkouts.agent_definitions(direct)

    async def _continue_in_a_kept_checkout(
        self, checkouts: GitCheckouts, hands: SandboxedCheckouts | None
    ) -> None:
        job = make_job()
        place = await checkouts.prepare(job, self.repository.workspace(), 1)
        await self._does(hands, place, self._taint)
        await checkouts.retain(place)
        self._push_a_branch()
        place = await checkouts.prepare(replace(job, begin="resume"), self.repository.workspace(), 1)
        assert place.warnings == ()
        await checkouts.release(place)

    async def _work(
        self,
        checkouts: GitCheckouts,
        hands: SandboxedCheckouts | None,
        job: Job,
        workspace: Workspace,
        left: str = "true",
    ) -> None:
        place = await checkouts.prepare(job, workspace, 1)
        await self._does(
            hands, place, "echo a > a.txt; git add a.txt; git commit --no-gpg-sign -qm a || true"
        )
        await self._does(hands, place, self._taint)
        more = "echo more >> readme.txt; rm -f src/code.txt closed.txt; echo x > closed.txt; chmod 000 closed.txt"
        await self._does(hands, place, f"set +e; {left}")
        await self._does(hands, place, more)
        harvest = await checkouts.harvest(place)
        assert harvest.changes is not None, harvest.warnings
        await checkouts.release(place)

    async def _does(self, hands: SandboxedCheckouts | None, place: Checkout, script: str) -> None:
        if hands is not None:
            await hands.run_as_agent(place, script)
        else:
            run_as_agent(place, script)
            self.marks.take_marks()  # that was the agent's own doing


def play(taints: Sequence[str], kinds: Sequence[str]) -> Mapping[str, set[int]]:
    """Play a scene with these kinds of sealed checkouts, without any at level `none`.

    Return as whom something ran while git was called, for each call that it went through.
    """
    root = Path(tempfile.mkdtemp(prefix="sh-gc-", dir="/tmp"))
    root.chmod(0o755)
    try:
        scene = Scene(root, taints, kinds)
        with pytest.MonkeyPatch.context() as patch:
            watched = GitCallTracer(scene.marks, patch)
            asyncio.run(scene.play())
            return watched.ran
    finally:
        shutil.rmtree(root, ignore_errors=True)


LONG_SCENES = [pytest.param((taint,), id=taint, marks=pytest.mark.long) for taint in ATTACKS]
SCENES = [
    *(pytest.param(taints, id=", ".join(taints)) for taints in TOGETHER),
    *LONG_SCENES,
]
SEALED_SCENES = [
    *(
        pytest.param(
            taints,
            (kind,),
            id=f"{', '.join(taints)}-{kind}",
            marks=[] if kind == "overlay" else [pytest.mark.long],
        )
        for taints, kind in zip(TOGETHER, KINDS, strict=True)
    ),
    *(
        pytest.param(*scene.values, tuple(KINDS), id=scene.id, marks=pytest.mark.long)
        for scene in (*SCENES[: len(TOGETHER)], *LONG_SCENES)
    ),
]


def test_every_place_that_calls_git_has_its_cases() -> None:
    assert set(find_call_sites().values()) == {*SHARED, *SEALED_CALLS, *BARE_CALLS}


def test_git_is_started_where_the_calls_are_looked_for_and_nowhere_else() -> None:
    found = set()
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text if '"git"' in text else "")):
            if isinstance(node, ast.Constant) and node.value == "git":
                found.add(str(path.relative_to(SOURCES)))
    callers = ("git", "sandboxed_command", "sandboxed_git", "in_place", "repository_source")
    found -= {f"workspace/{name}.py" for name in callers}
    # The name of a check of doctor's, and what is no part of the service.
    own = {"cli/demo.py", "cli/local_repository.py", "testing/service.py", "testing/example.py"}
    assert found == {"workspace/doctor.py", *own}


def test_every_taint_is_in_one_group() -> None:
    assert sorted(taint for taints in TOGETHER for taint in taints) == sorted(ATTACKS)


def _alone_and_together(taint: str) -> Sequence[Sequence[str]]:
    return [(taint,), *(taints for taints in TOGETHER if taint in taints)]


@pytest.mark.parametrize(
    ("taints", "taint", "command"),
    [
        pytest.param(
            taints,
            taint,
            command,
            id=f"{', '.join(taints)}-{command}",
            # In a group it has to run by one command; by each, and alone, in the long run.
            marks=[] if taints in TOGETHER and command == UNSAFE_COMMANDS[taint][0] else [pytest.mark.long],
        )
        for taint in ATTACKS
        for taints in _alone_and_together(taint)
        for command in UNSAFE_COMMANDS[taint]
    ],
)
def test_a_careless_git_runs_the_taint(
    world_dir: Path, taints: Sequence[str], taint: str, command: str
) -> None:
    """The control: each taint can do something, also beside others; its absence is what the others can find."""
    marks = AttackMarks(world_dir)
    repository = make_repository(world_dir / "repository")
    repository.commit("greeting.txt", "hello\n")
    repository.run(
        "git checkout -q -b other HEAD~1; echo other > greeting.txt; git add -A; git commit -qm other;"
        " git checkout -q main"
    )
    run_shell("git clone -q repository pulled; cp -r pulled pushed", world_dir)
    repository.run(f"echo {world_dir}/pulled/.git/objects > .git/objects/info/alternates")
    repository.run(f"{marks.attack_script(*taints)}; true")
    repository.run("echo more >> greeting.txt")
    assert marks.take_marks() == set()
    repository.run(f"({command}) < /dev/null > /dev/null 2>&1 || true")
    assert marks.taken_by_taint()[taint] == {0}


@pytest.mark.parametrize(("taints", "kinds"), SEALED_SCENES)
def test_sealed_a_taint_runs_nothing_outside(taints: Sequence[str], kinds: Sequence[str]) -> None:
    ran = play(taints, kinds)
    calls = {*SHARED, *SEALED_CALLS, UNKNOWN_PLACE}
    calls -= {call for call, kind in ONLY_WITH.items() if kind not in kinds}
    assert calls - set(ran) == set(), "calls that were not made"
    assert {call: users for call, users in ran.items() if users} == {}


@pytest.mark.long
@pytest.mark.parametrize("taints", SCENES)
def test_without_a_boundary_a_taint_runs_nothing_or_as_the_agents_user_in_its_own_directory(
    taints: Sequence[str],
) -> None:
    ran = play(taints, ())
    calls = {*SHARED, *BARE_CALLS}
    assert calls - set(ran) == set(), "calls that were not made"
    assert {call: ran[call] for call in calls if ran[call] - _allowed(call)} == {}


def _allowed(call: str) -> set[int]:
    return {OWNER} if call in AS_THE_AGENT else set()
