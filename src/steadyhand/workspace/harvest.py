"""The harvest: store the work of a job after its last process has ended.

If the service ran git in a repository that an agent wrote, git could run the agent's code. So the agent's own `.git`
is read only once: a git that runs as the agent's uid packs its commits. Uncommitted files are read by the same uid
through a git directory of the service over the agent's work tree. Both packs are checked object by object in a bare
repository of the service, from which the diff and the bundle are made.
"""

import asyncio
import re
import time
from dataclasses import replace
from pathlib import Path

from steadyhand.agents import Agent
from steadyhand.errors import WorkspaceError
from steadyhand.job import Changes, JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import AgentFiles, BindMount, Checkout, Harvest, JobPaths, SandboxExec
from steadyhand.redact import Redactor
from steadyhand.workspace import git_index as staging
from steadyhand.workspace.filesystem import TRAVERSABLE, chown_tree, make_dir, remove_tree
from steadyhand.workspace.git import MIB, Git, GitResult, GitSettings, scrub
from steadyhand.workspace.git_dir import make_bare_repository
from steadyhand.workspace.git_index import SKIP_REASONS, stage_changes
from steadyhand.workspace.in_place import head_of
from steadyhand.workspace.job_dirs import base_dir, base_index_path
from steadyhand.workspace.mirror import Mirrors
from steadyhand.workspace.ref_names import COMMIT
from steadyhand.workspace.sandboxed_git_client import BASE_DIR, SandboxReply, run_sandboxed_git

HARVEST_SECONDS = 30.0
PUSH_SECONDS = 10.0
"""The minimal time limit of a push, in seconds; the rest of the harvest's time is added."""
COMMITS_SECONDS = 12.0
"""The part of the harvest's time that the agent's own `.git` may take; the files need the rest."""
DIFF_BYTES = 64 * MIB
PACK_BYTES = 256 * MIB
SANDBOX_PACK_BYTES = 128 * MIB
"""The size limit of one pack from a sandbox, which is held in memory."""
MAX_OBJECTS = 1_000_000
_SHORTSTAT_BYTES = 4096
_SHORTSTAT = re.compile(r"(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?")
# Blobs above this are streamed, never held in memory whole, while foreign packs are checked.
_IMPORT_CONFIG = (("core.bigFileThreshold", "32m"), ("pack.threads", "1"), ("core.fsync", "none"))
# A small pack can hold an object of any size: none is taken into memory that is larger.
_IMPORT_BOUNDS = {"GIT_ALLOC_LIMIT": "512m"}
_SNAPSHOT_CONFIG = (("core.compression", "1"), ("core.fsync", "none"), ("pack.threads", "1"))
_DIFF = (
    "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--find-renames",
    "--ignore-submodules=none", "--submodule=short",
)  # fmt: skip


class Harvester:
    """Harvests the work of jobs whose agents have ended."""

    def __init__(
        self,
        mirrors: Mirrors,
        settings: GitSettings,
        agent_files: AgentFiles,
        seconds: float = HARVEST_SECONDS,
        sandbox_exec: SandboxExec | None = None,
        *,
        redactor: Redactor,
    ) -> None:
        """Keep the settings. `seconds` limits all git work of a harvest; with `sandbox_exec` it runs in the sandbox."""
        self._redactor = redactor
        self._agent_files = agent_files
        self._sandbox_exec = sandbox_exec
        self._mirrors = mirrors
        self._settings = settings
        self._seconds = seconds

    async def harvest(self, checkout: Checkout) -> Harvest:
        """Store the transcript, the diff and the commits. A part that cannot be stored becomes a warning."""
        warnings: list[JobWarning] = []
        warning = await asyncio.to_thread(self._copy_transcript, checkout)
        if warning is not None:
            warnings.append(warning)
        changes = None
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                changes = await self._changes(checkout, warnings)
            if changes is not None and checkout.publish == "branch" and checkout.workspace.mode != "in_place":
                seconds_left = max(PUSH_SECONDS, self._seconds + PUSH_SECONDS - (time.monotonic() - started))
                changes = await self._publish(checkout, changes, warnings, seconds_left)
        except TimeoutError:
            warnings.append(_failure_warning(f"it took longer than {self._seconds:g} s."))
        except WorkspaceError as error:
            warnings.append(_failure_warning(error.detail))
        except OSError as error:
            warnings.append(_failure_warning(f"{error.strerror}."))
        finally:
            await asyncio.to_thread(_clean_up, checkout.paths)
        return Harvest(changes, tuple(warnings))

    def _copy_transcript(self, checkout: Checkout) -> JobWarning | None:
        agent_files, files = self._agent_files, checkout.paths
        if checkout.config_dir is not None:
            return agent_files.copy_transcript(
                checkout.config_dir, files.transcript, owner=checkout.uid, redactor=self._redactor
            )
        since = (files.root / "prepared").stat().st_mtime
        return agent_files.copy_transcript(
            agent_files.default_config_dir(checkout.home),
            files.transcript,
            owner=checkout.uid,
            since=since,
            directory=checkout.directory,
            redactor=self._redactor,
        )

    async def _changes(self, checkout: Checkout, warnings: list[JobWarning]) -> Changes | None:
        if checkout.workspace.repository is None or checkout.commit is None:
            return None
        context = _HarvestContext(checkout, checkout.commit, warnings)
        if checkout.workspace.mode == "in_place":
            if self._sandbox_exec is not None:
                return await _harvest_in_place_sandboxed(context, self._sandbox_exec)
            return await _harvest_in_place(context)
        mirror = self._mirrors.get(checkout.workspace.repository)
        return await _PrivateHarvest(context, mirror.objects, self._settings, self._sandbox_exec).collect()

    async def _publish(
        self, checkout: Checkout, changes: Changes, warnings: list[JobWarning], seconds: float
    ) -> Changes:
        """Push the branch with the service's own credentials. If the push fails, the commits stay in the bundle."""
        branch = f"steadyhand/{checkout.paths.root.name}"
        if any(warning.code == WarningCode.DIFF_DIFFERS for warning in warnings):
            text = f"The branch '{branch}' was not pushed: the diff does not show all of it."
            warnings.append(JobWarning(WarningCode.PUBLISH_FAILED, text))
            return replace(changes, branch=branch)
        mirror = self._mirrors.get(checkout.workspace.repository or "")
        try:
            await mirror.push(_import_dir_of(checkout.paths), changes.head, branch, seconds=seconds)
        except WorkspaceError as error:
            text = f"The branch '{branch}' could not be pushed; its commits are kept. ({error.detail})"
            warnings.append(JobWarning(WarningCode.PUBLISH_FAILED, text))
            return replace(changes, branch=branch)
        return replace(changes, branch=branch, published=True)


class _HarvestContext:
    """One harvest: its folders, its base commit and its warnings. `folder` is removed after it."""

    def __init__(self, checkout: Checkout, base: str, warnings: list[JobWarning]) -> None:
        self.checkout = checkout
        self.base = base
        self.warnings = warnings
        self.files = checkout.paths
        self.folder = checkout.paths.root / "harvest"
        remove_tree(self.folder)
        make_dir(self.folder, TRAVERSABLE)

    def warn(self, code: WarningCode, message: str) -> None:
        self.warnings.append(JobWarning(code, message))

    def warn_skipped(self, reply: SandboxReply) -> None:
        """Add a warning for each group of files that the sandboxed program skipped."""
        for kind in SKIP_REASONS:
            names, count = reply.fields.get(kind), reply.fields.get(f"{kind}_count")
            if isinstance(names, list) and names and type(count) is int:
                examples = [str(name)[:200].encode("utf-8", "replace") for name in names[:3]]
                self.warnings.append(staging.skipped_warning(kind, examples, count))
        reason = reply.sentence("files_lost")
        if reason is not None:
            self.warn(
                WarningCode.HARVEST_PARTIAL,
                f"Some changed files could not be kept: {scrub(reason)}",
            )

    async def write_diff(self, git: Git, cwd: Path, *revisions: str) -> tuple[int, int, int]:
        """Write the diff and return its size: files, insertions, deletions."""
        part = self.files.diff.with_name("diff.part")
        with part.open("wb") as file:
            result = await git.run(
                *_DIFF, "--binary", "--full-index", *revisions, "--",
                cwd=cwd, stdout_file=file, limit=DIFF_BYTES, check=False,
            )  # fmt: skip
        if result.overflowed:
            part.unlink()
            self.files.diff.unlink(missing_ok=True)
            self.warn(WarningCode.DIFF_TOO_LARGE, "The diff is larger than 64 MiB and was not kept.")
        elif result.code != 0:
            part.unlink()
            raise WorkspaceError(f"git diff failed: {result.reason}")
        else:
            part.replace(self.files.diff)
        shortstat = await git.run(*_DIFF, "--shortstat", *revisions, "--", cwd=cwd)
        return _parse_shortstat(shortstat.text)


class _PrivateHarvest:
    """The harvest of a private checkout."""

    def __init__(
        self,
        context: _HarvestContext,
        mirror_objects: Path,
        settings: GitSettings,
        sandbox_exec: SandboxExec | None,
    ) -> None:
        self._sandbox_exec = sandbox_exec
        self._context = context
        self._user = context.checkout.uid
        self._checkout = context.files.checkout
        self._import_dir = _import_dir_of(context.files)
        self._snapshot = context.folder / "snapshot"
        self._settings = settings
        self._branch = f"refs/heads/steadyhand/{context.files.root.name}"
        self._git = Git(env={"GIT_DIR": str(self._import_dir), **_IMPORT_BOUNDS}, config=_IMPORT_CONFIG)
        make_bare_repository(self._import_dir, mirror_objects, context.base)

    async def collect(self) -> Changes | None:
        base = self._context.base
        if self._sandbox_exec is not None:
            head = await self._import_from_sandbox(self._sandbox_exec)
        else:
            head = await self._import_tree(await self._import_commits())
        if head == base:
            return None
        await self._run("update-ref", self._branch, head)
        files, insertions, deletions = await self._write_checked_diff(base, head)
        await self._write_bundle(head)
        return Changes(base, head, files, insertions, deletions)

    # --- the diff --------------------------------------------------------------------------

    async def _write_checked_diff(self, base: str, head: str) -> tuple[int, int, int]:
        """Write the diff and return its size. Who reviews the diff sees exactly the tree of `head`, or is warned."""
        size = await self._context.write_diff(self._git, self._import_dir, base, head)
        if await self._diff_makes(base, head):
            return size
        await self._context.write_diff(self._git, self._import_dir, "--no-renames", base, head)
        if not await self._diff_makes(base, head):
            self._context.warn(
                WarningCode.DIFF_DIFFERS,
                "The diff does not show all that the commits change; see the bundle.",
            )
        return size

    async def _diff_makes(self, base: str, head: str) -> bool:
        """Return true if the diff, applied to the tree of `base`, makes that of `head`; also if there is none."""
        diff = self._context.files.diff
        if not diff.exists():
            return True  # it is too large, and a warning says so
        env = {"GIT_DIR": str(self._import_dir), "GIT_INDEX_FILE": str(self._import_dir / "check.index")}
        git = Git(env=env | _IMPORT_BOUNDS, config=_IMPORT_CONFIG)
        await git.run("read-tree", base, cwd=self._import_dir)
        if diff.stat().st_size:
            applied = await git.run(
                "apply", "--cached", "--whitespace=nowarn", str(diff), cwd=self._import_dir, check=False
            )
            if applied.code != 0:
                return False
        wanted = await git.run("rev-parse", "--verify", f"{head}^{{tree}}", cwd=self._import_dir)
        return (await git.run("write-tree", cwd=self._import_dir)).text == wanted.text

    async def _run(self, *arguments: str, **options: bytes) -> GitResult:
        return await self._git.run(*arguments, cwd=self._import_dir, stdin=options.get("stdin", b""))

    # --- commits ---------------------------------------------------------------------------

    async def _import_commits(self) -> str:
        """Import the agent's commits and return their HEAD; the base if they cannot be read."""
        base = self._context.base
        try:
            git = Git(user=self._user, env={"GIT_DIR": str(self._checkout / ".git")}, config=_SNAPSHOT_CONFIG)
            head = _require_head(await head_of(git, self._checkout))
            if head != base and not await self._has_commit(head):
                revisions = f"{head}\n^{base}\n".encode()
                pack = await self._pack(git, "commits", revisions, "--revs")
                await self._index_pack(pack)
            await self._run("rev-parse", "--verify", "--quiet", f"{head}^{{commit}}")
        except WorkspaceError as error:
            self._warn_commits_lost(error.detail)
            return base
        return head

    def _warn_commits_lost(self, reason: str) -> None:
        text = f"The agent's commits could not be taken in; its files were. ({reason})"
        self._context.warn(WarningCode.HARVEST_PARTIAL, text)

    async def _has_commit(self, commit: str) -> bool:
        """Return true if the mirror has the commit: then the agent only moved to another commit of the repository."""
        result = await self._git.run(
            "cat-file", "-e", f"{commit}^{{commit}}", cwd=self._import_dir, check=False
        )
        return result.code == 0

    async def _pack(self, git: Git, name: str, stdin: bytes, *options: str) -> Path:
        pack = self._import_dir / "objects" / "pack" / f"pack-{name}.pack"
        with pack.open("wb") as file:
            await git.run(
                "pack-objects", "--quiet", "--stdout", *options,
                cwd=self._checkout, stdin=stdin, stdout_file=file, limit=PACK_BYTES,
            )  # fmt: skip
        return pack

    async def _index_pack(self, pack: Path) -> None:
        """Check a pack object by object and link by link, and remove it if the check fails."""
        try:
            await self._run("index-pack", "--strict=badFilemode=error", str(pack))
        except WorkspaceError:
            await asyncio.to_thread(pack.unlink)
            raise

    # --- files -----------------------------------------------------------------------------

    async def _import_tree(self, head: str) -> str:
        """Commit the agent's uncommitted files on top of `head`, in the service's repository, and return the commit."""
        index = self._import_dir / "index"
        index.write_bytes(base_index_path(self._context.files).read_bytes())
        if head != self._context.base:
            # The index keeps what it knows of unchanged files, so that only changed ones are read.
            await self._run("read-tree", "--index-output=" + str(index), "-i", "-m", self._context.base, head)
        make_bare_repository(self._snapshot, None, head)
        (self._snapshot / "index").write_bytes(index.read_bytes())
        chown_tree(self._snapshot, self._user)
        env = {"GIT_DIR": str(self._snapshot), "GIT_WORK_TREE": str(self._checkout)}
        git = Git(user=self._user, env=env, config=_SNAPSHOT_CONFIG)
        await stage_changes(git, self._checkout, self._context.warnings)
        # Unchanged objects are in the mirror, out of the agent's reach.
        tree = (await git.run("write-tree", "--missing-ok", cwd=self._checkout)).text
        object_ids = await git.run(
            "cat-file",
            "--batch-all-objects",
            "--unordered",
            "--batch-check=%(objectname)",
            cwd=self._checkout,
        )
        if object_ids.stdout:
            await self._index_pack(await self._pack(git, "files", object_ids.stdout))
        return await self._commit_on(tree, head)

    async def _commit_on(self, tree: str, head: str) -> str:
        if tree == (await self._run("rev-parse", "--verify", f"{head}^{{tree}}")).text:
            return head
        return await self._commit_tree(tree, head)

    async def _commit_tree(self, tree: str, parent: str) -> str:
        name, email = self._settings.author_name, self._settings.author_email
        env = {"GIT_DIR": str(self._import_dir)}
        env |= {f"GIT_{role}_{field}": value for role in ("AUTHOR", "COMMITTER")
                for field, value in (("NAME", name), ("EMAIL", email))}  # fmt: skip
        message = f"Uncommitted work of job {self._context.files.root.name}\n"
        result = await Git(env=env, config=_IMPORT_CONFIG).run(
            "commit-tree", tree, "-p", parent, cwd=self._import_dir, stdin=message.encode()
        )
        return result.text

    # --- both, from inside the sandbox -----------------------------------------------------

    async def _import_from_sandbox(self, sandbox_exec: SandboxExec) -> str:
        """Import the commits and files that were packed inside the sandbox, and return the resulting head."""
        reply = await self._run_in_sandbox(sandbox_exec, commits=True)
        loss = reply.sentence("commits_lost")
        head = self._context.base
        if loss is None:
            try:
                head = reply.validated_text("head", COMMIT)
                await self._import_pack("commits", reply.parts[0])
                await self._run("rev-parse", "--verify", "--quiet", f"{head}^{{commit}}")
            except WorkspaceError as error:
                loss, head = error.detail, self._context.base
                # The commits were rejected, so the files are read again as changes to the base.
                reply = await self._run_in_sandbox(sandbox_exec, commits=False)
        if loss is not None:
            self._warn_commits_lost(scrub(loss))
        await self._import_pack("files", reply.parts[1])
        self._context.warn_skipped(reply)
        tree = reply.validated_text("tree", COMMIT)
        await self._run("rev-parse", "--verify", "--quiet", f"{tree}^{{tree}}")
        return await self._commit_on(tree, head)

    async def _run_in_sandbox(self, sandbox_exec: SandboxExec, *, commits: bool) -> SandboxReply:
        checkout, files = self._context.checkout, self._context.files
        layers = checkout.layers
        base = base_dir(files) if layers is None else layers.lower.parent / "base"
        checkout = replace(checkout, binds=(*checkout.binds, BindMount(base, BASE_DIR)))
        request = {
            "verb": "harvest", "base": self._context.base, "commits": commits, "limit": SANDBOX_PACK_BYTES,
            "commits_seconds": COMMITS_SECONDS, "file_bytes": staging.FILE_BYTES, "all_bytes": staging.TOTAL_BYTES,
        }  # fmt: skip
        return await run_sandboxed_git(
            sandbox_exec, request, checkout, Agent("harvest"),
            seconds=HARVEST_SECONDS, max_output=2 * SANDBOX_PACK_BYTES + MIB, parts=2,
        )  # fmt: skip

    async def _import_pack(self, name: str, pack: memoryview) -> None:
        """Check a pack from the sandbox and import it."""
        if not pack:
            return
        if (
            len(pack) > SANDBOX_PACK_BYTES
            or bytes(pack[:4]) != b"PACK"
            or int.from_bytes(pack[8:12]) > MAX_OBJECTS
        ):
            raise WorkspaceError("the output of the sandbox is not a pack, or it is too large")
        path = self._import_dir / "objects" / "pack" / f"pack-{name}.pack"
        await asyncio.to_thread(path.write_bytes, pack)
        await self._index_pack(path)

    async def _write_bundle(self, head: str) -> None:
        """Write the commits after the base as a bundle; write none if the agent only moved back in history."""
        count = await self._run("rev-list", "--count", f"{self._context.base}..{head}")
        if count.text == "0":
            return
        part = self._context.files.bundle.with_name("bundle.part")
        with part.open("wb") as file:
            await self._git.run(
                "bundle", "create", "--quiet", "-", f"{self._context.base}..{self._branch}",
                cwd=self._import_dir, stdout_file=file, limit=PACK_BYTES,
            )  # fmt: skip
        part.replace(self._context.files.bundle)


async def _harvest_in_place_sandboxed(context: _HarvestContext, sandbox_exec: SandboxExec) -> Changes | None:
    """Compare as `_harvest_in_place` does, but inside the sandbox, where the directory's git configuration may run."""
    request = {
        "verb": "compare", "base": context.base, "diff": _DIFF, "limit": DIFF_BYTES,
        "file_bytes": staging.FILE_BYTES, "all_bytes": staging.TOTAL_BYTES,
    }  # fmt: skip
    reply = await run_sandboxed_git(
        sandbox_exec, request, context.checkout, Agent("harvest"),
        seconds=HARVEST_SECONDS, max_output=DIFF_BYTES + MIB, parts=2,
    )  # fmt: skip
    head = reply.validated_text("head", COMMIT)
    context.warn_skipped(reply)
    files, insertions, deletions = _parse_shortstat(
        bytes(reply.parts[1][:_SHORTSTAT_BYTES]).decode("utf-8", "replace")
    )
    if reply.fields.get("cut"):
        context.warn(WarningCode.DIFF_TOO_LARGE, "The diff is larger than 64 MiB and was not kept.")
    elif files or head != context.base:
        await asyncio.to_thread(context.files.diff.write_bytes, reply.parts[0])
    if files == 0 and head == context.base:
        return None
    return Changes(context.base, head, files, insertions, deletions)


async def _harvest_in_place(context: _HarvestContext) -> Changes | None:
    """Compare HEAD before the run with the files after it, as the agent's uid; index and objects do not change."""
    checkout, folder = context.checkout, context.checkout.directory
    scratch = context.folder / "snapshot"
    make_bare_repository(scratch, None, context.base)
    chown_tree(scratch, checkout.uid)
    agent_git = Git(user=checkout.uid)
    head = await head_of(agent_git, folder) or context.base
    objects = (await agent_git.run("rev-parse", "--git-path", "objects", cwd=folder)).text
    env = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(folder / objects),
    }
    index_git = Git(user=checkout.uid, env=env, config=_SNAPSHOT_CONFIG)
    top = Path((await agent_git.run("rev-parse", "--show-toplevel", cwd=folder)).text)
    await index_git.run("read-tree", head, cwd=top)
    await stage_changes(index_git, top, context.warnings)
    files, insertions, deletions = await context.write_diff(index_git, top, "--cached", context.base)
    if files == 0 and head == context.base:
        context.files.diff.unlink(missing_ok=True)
        return None
    return Changes(context.base, head, files, insertions, deletions)


def _import_dir_of(files: JobPaths) -> Path:
    """Return the folder of the service's own repository for one harvest."""
    return files.root / "harvest" / "import.git"


def _require_head(head: str | None) -> str:
    if head is None or COMMIT.fullmatch(head) is None:
        raise WorkspaceError("the checkout has no HEAD any more")
    return head


def _parse_shortstat(text: str) -> tuple[int, int, int]:
    match = _SHORTSTAT.search(text)
    if match is None:
        return 0, 0, 0
    return int(match[1]), int(match[2] or 0), int(match[3] or 0)


def _clean_up(files: JobPaths) -> None:
    remove_tree(files.root / "harvest")
    for name in ("diff.part", "bundle.part"):
        (files.artifacts / name).unlink(missing_ok=True)


def _failure_warning(reason: str) -> JobWarning:
    return JobWarning(WarningCode.HARVEST_FAILED, f"The agent's changes could not be kept: {reason}")
