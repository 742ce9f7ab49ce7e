"""Keeps what a job did, when nothing of it is alive.

git run by the service in a repository that an agent wrote would run the agent's code. So the agent's own
`.git` is asked for one thing only, its commits as a pack, by a git that runs as the agent's uid; what is
uncommitted is read through a git directory of ours over the agent's work tree, by the same uid; and both
packs are checked object by object into a bare repository of the service, which the diff and the bundle
come from.
"""

import asyncio
import re
import time
from dataclasses import replace
from pathlib import Path

from steadyhand.agents import Agent
from steadyhand.errors import WorkspaceError
from steadyhand.job import Changes, Notice
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Bind, Errands, Harvest, JobFiles, Place
from steadyhand.redact import Redactor
from steadyhand.workspace import git_index as staging
from steadyhand.workspace.filesystem import TRAVERSABLE, hand_over, make_folder, remove_tree
from steadyhand.workspace.git import MIB, Git, GitSettings, Ran, without_secrets
from steadyhand.workspace.git_dir import make_repository
from steadyhand.workspace.git_index import KINDS, stage
from steadyhand.workspace.in_place import head_of
from steadyhand.workspace.job_dirs import base_index, base_of
from steadyhand.workspace.mirror import COMMIT, Mirrors
from steadyhand.workspace.sandboxed_git_client import GIVEN, Answer, ask
from steadyhand.workspace.transcript import keep_transcript

HARVEST_SECONDS = 30.0
PUSH_SECONDS = 10.0
"""What a push has at least; it has what is left of the harvest's time as well."""
COMMITS_SECONDS = 12.0
"""What the agent's own `.git` may take of it; time for the files is left."""
DIFF_BYTES = 64 * MIB
PACK_BYTES = 256 * MIB
SEALED_BYTES = 128 * MIB
"""The most that comes out of a sandbox in one pack; it is held in memory."""
OBJECTS = 1_000_000
_COUNTS = 4096
_SHORTSTAT = re.compile(r"(\d+) files? changed(?:, (\d+) insertions?\(\+\))?(?:, (\d+) deletions?\(-\))?")
# Blobs above this are streamed, never held in memory whole, while foreign packs are checked.
_IMPORT_CONFIG = (("core.bigFileThreshold", "32m"), ("pack.threads", "1"), ("core.fsync", "none"))
# A small pack can hold an object of any size: none is taken into memory that is larger.
_IMPORT_BOUNDS = {"GIT_ALLOC_LIMIT": "512m"}
_SNAPSHOT_CONFIG = (("core.compression", "1"), ("core.fsync", "none"), ("pack.threads", "1"))
_DIFF = ("diff", "--no-ext-diff", "--no-textconv", "--no-color", "--find-renames")


class Harvester:
    """Takes in the work of jobs whose agents have ended."""

    def __init__(
        self,
        mirrors: Mirrors,
        settings: GitSettings,
        seconds: float = HARVEST_SECONDS,
        errands: Errands | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        """`seconds` bounds all git work of one harvest; with `errands` it reads what was left inside the sandbox."""
        self._redactor = redactor
        self._errands = errands
        self._mirrors = mirrors
        self._settings = settings
        self._seconds = seconds

    async def harvest(self, place: Place) -> Harvest:
        """Keep the transcript, the diff and the commits; what could not be kept is a notice, never an error."""
        notices: list[Notice] = []
        cut = await asyncio.to_thread(_keep_transcript, place, self._redactor)
        if cut is not None:
            notices.append(cut)
        changes = None
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                changes = await self._changes(place, notices)
            if changes is not None and place.publish == "branch" and place.workspace.mode != "in_place":
                left = max(PUSH_SECONDS, self._seconds + PUSH_SECONDS - (time.monotonic() - started))
                changes = await self._publish(place, changes, notices, left)
        except TimeoutError:
            notices.append(_failed(f"it took longer than {self._seconds:g} s."))
        except WorkspaceError as error:
            notices.append(_failed(error.detail))
        except OSError as error:
            notices.append(_failed(f"{error.strerror}."))
        finally:
            await asyncio.to_thread(_tidy, place.files)
        return Harvest(changes, tuple(notices))

    async def _changes(self, place: Place, notices: list[Notice]) -> Changes | None:
        if place.workspace.repository is None or place.commit is None:
            return None
        work = _Work(place, place.commit, notices)
        if place.workspace.mode == "in_place":
            if self._errands is not None:
                return await _in_place_sealed(work, self._errands)
            return await _in_place(work)
        mirror = self._mirrors.of(place.workspace.repository)
        return await _Private(work, mirror.objects, self._settings, self._errands).keep()

    async def _publish(
        self, place: Place, changes: Changes, notices: list[Notice], seconds: float
    ) -> Changes:
        """Push the branch with the service's own credentials; what cannot be pushed stays as a bundle."""
        branch = f"steadyhand/{place.files.root.name}"
        mirror = self._mirrors.of(place.workspace.repository or "")
        try:
            await mirror.push(_ours(place.files), changes.head, branch, seconds=seconds)
        except WorkspaceError as error:
            text = f"The branch '{branch}' could not be pushed; its commits are kept. ({error.detail})"
            notices.append(Notice(WarningCode.PUBLISH_FAILED, text))
            return replace(changes, branch=branch)
        return replace(changes, branch=branch, published=True)


class _Work:
    """One harvest: its folders, its base and its notices. `folder` holds what is needed for it alone."""

    def __init__(self, place: Place, base: str, notices: list[Notice]) -> None:
        self.place = place
        self.base = base
        self.notices = notices
        self.files = place.files
        self.folder = place.files.root / "harvest"
        remove_tree(self.folder)
        make_folder(self.folder, TRAVERSABLE)

    def note(self, code: WarningCode, message: str) -> None:
        self.notices.append(Notice(code, message))

    def note_left_out(self, answer: Answer) -> None:
        """Note what the other side says that it left out."""
        for kind in KINDS:
            names, count = answer.said.get(kind), answer.said.get(f"{kind}_count")
            if isinstance(names, list) and names and type(count) is int:
                shown = [str(name)[:200].encode("utf-8", "replace") for name in names[:3]]
                self.notices.append(staging.left_out(kind, shown, count))
        reason = answer.reason("files_lost")
        if reason is not None:
            self.note(
                WarningCode.HARVEST_PARTIAL,
                f"Some changed files could not be kept: {without_secrets(reason)}",
            )

    async def keep_diff(self, git: Git, cwd: Path, *revisions: str) -> tuple[int, int, int]:
        """Write the diff and give its size: files, insertions, deletions."""
        part = self.files.diff.with_name("diff.part")
        with part.open("wb") as file:
            ran = await git.run(
                *_DIFF, "--binary", "--full-index", *revisions, "--",
                cwd=cwd, into=file, limit=DIFF_BYTES, check=False,
            )  # fmt: skip
        if ran.overflowed:
            part.unlink()
            self.note(WarningCode.DIFF_TOO_LARGE, "The diff is larger than 64 MiB and was not kept.")
        elif ran.code != 0:
            part.unlink()
            raise WorkspaceError(f"git diff failed: {ran.reason}")
        else:
            part.replace(self.files.diff)
        counted = await git.run(*_DIFF, "--shortstat", *revisions, "--", cwd=cwd)
        return _counts(counted.text)


class _Private:
    """The harvest of a private checkout."""

    def __init__(
        self, work: _Work, mirror_objects: Path, settings: GitSettings, errands: Errands | None
    ) -> None:
        self._errands = errands
        self._work = work
        self._user = work.place.user
        self._checkout = work.files.checkout
        self._ours = _ours(work.files)
        self._snapshot = work.folder / "snapshot"
        self._settings = settings
        self._branch = f"refs/heads/steadyhand/{work.files.root.name}"
        self._git = Git(env={"GIT_DIR": str(self._ours), **_IMPORT_BOUNDS}, config=_IMPORT_CONFIG)
        make_repository(self._ours, mirror_objects)

    async def keep(self) -> Changes | None:
        base = self._work.base
        if self._errands is not None:
            head = await self._take_sealed(self._errands)
        else:
            head = await self._take_tree(await self._take_commits())
        if head == base:
            return None
        await self._run("update-ref", self._branch, head)
        files, insertions, deletions = await self._work.keep_diff(self._git, self._ours, base, head)
        await self._keep_bundle(head)
        return Changes(base, head, files, insertions, deletions)

    async def _run(self, *arguments: str, **options: bytes) -> Ran:
        return await self._git.run(*arguments, cwd=self._ours, stdin=options.get("stdin", b""))

    # --- commits ---------------------------------------------------------------------------

    async def _take_commits(self) -> str:
        """Take in what the agent committed and give its HEAD; the base when that is not to be had."""
        base = self._work.base
        try:
            git = Git(user=self._user, env={"GIT_DIR": str(self._checkout / ".git")}, config=_SNAPSHOT_CONFIG)
            head = _checked(await head_of(git, self._checkout))
            if head != base and not await self._known(head):
                revisions = f"{head}\n^{base}\n".encode()
                pack = await self._pack(git, "commits", revisions, "--revs")
                await self._import(pack)
            await self._run("rev-parse", "--verify", "--quiet", f"{head}^{{commit}}")
        except WorkspaceError as error:
            self._note_lost(error.detail)
            return base
        return head

    def _note_lost(self, reason: str) -> None:
        text = f"The agent's commits could not be taken in; its files were. ({reason})"
        self._work.note(WarningCode.HARVEST_PARTIAL, text)

    async def _known(self, commit: str) -> bool:
        """Whether the mirror has it: the agent only moved to another commit of the repository."""
        ran = await self._git.run("cat-file", "-e", f"{commit}^{{commit}}", cwd=self._ours, check=False)
        return ran.code == 0

    async def _pack(self, git: Git, name: str, stdin: bytes, *options: str) -> Path:
        pack = self._ours / "objects" / "pack" / f"pack-{name}.pack"
        with pack.open("wb") as file:
            await git.run(
                "pack-objects", "--quiet", "--stdout", *options,
                cwd=self._checkout, stdin=stdin, into=file, limit=PACK_BYTES,
            )  # fmt: skip
        return pack

    async def _import(self, pack: Path) -> None:
        """Check a pack object by object and link by link; one that fails is removed."""
        try:
            await self._run("index-pack", "--strict=badFilemode=error", str(pack))
        except WorkspaceError:
            await asyncio.to_thread(pack.unlink)
            raise

    # --- files -----------------------------------------------------------------------------

    async def _take_tree(self, head: str) -> str:
        """Commit what the agent left uncommitted on top of `head`, in our repository."""
        index = self._ours / "index"
        index.write_bytes(base_index(self._work.files).read_bytes())
        if head != self._work.base:
            # The index keeps what it knows of unchanged files, so that only changed ones are read.
            await self._run("read-tree", "--index-output=" + str(index), "-i", "-m", self._work.base, head)
        make_repository(self._snapshot, None)
        (self._snapshot / "index").write_bytes(index.read_bytes())
        hand_over(self._snapshot, self._user)
        env = {"GIT_DIR": str(self._snapshot), "GIT_WORK_TREE": str(self._checkout)}
        git = Git(user=self._user, env=env, config=_SNAPSHOT_CONFIG)
        await stage(git, self._checkout, self._work.notices)
        # Unchanged objects are in the mirror, out of the agent's reach.
        tree = (await git.run("write-tree", "--missing-ok", cwd=self._checkout)).text
        listed = await git.run(
            "cat-file",
            "--batch-all-objects",
            "--unordered",
            "--batch-check=%(objectname)",
            cwd=self._checkout,
        )
        if listed.out:
            await self._import(await self._pack(git, "files", listed.out))
        return await self._on_top(tree, head)

    async def _on_top(self, tree: str, head: str) -> str:
        if tree == (await self._run("rev-parse", "--verify", f"{head}^{{tree}}")).text:
            return head
        return await self._commit(tree, head)

    async def _commit(self, tree: str, parent: str) -> str:
        name, email = self._settings.author_name, self._settings.author_email
        env = {"GIT_DIR": str(self._ours)}
        env |= {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER")
                for what, value in (("NAME", name), ("EMAIL", email))}  # fmt: skip
        message = f"Uncommitted work of job {self._work.files.root.name}\n"
        ran = await Git(env=env, config=_IMPORT_CONFIG).run(
            "commit-tree", tree, "-p", parent, cwd=self._ours, stdin=message.encode()
        )
        return ran.text

    # --- both, from inside the sandbox -----------------------------------------------------

    async def _take_sealed(self, errands: Errands) -> str:
        """Take in commits and files that were packed beside the agent's work, and give the head that they make."""
        answer = await self._ask(errands, commits=True)
        lost = answer.reason("commits_lost")
        head = self._work.base
        if lost is None:
            try:
                head = answer.text("head", COMMIT)
                await self._take_pack("commits", answer.parts[0])
                await self._run("rev-parse", "--verify", "--quiet", f"{head}^{{commit}}")
            except WorkspaceError as error:
                lost, head = error.detail, self._work.base
                # What came with the commits is not there to stand on: the files are asked for on the base.
                answer = await self._ask(errands, commits=False)
        if lost is not None:
            self._note_lost(without_secrets(lost))
        await self._take_pack("files", answer.parts[1])
        self._work.note_left_out(answer)
        tree = answer.text("tree", COMMIT)
        await self._run("rev-parse", "--verify", "--quiet", f"{tree}^{{tree}}")
        return await self._on_top(tree, head)

    async def _ask(self, errands: Errands, *, commits: bool) -> Answer:
        place, files = self._work.place, self._work.files
        layers = place.layers
        base = base_of(files) if layers is None else layers.lower.parent / "base"
        place = replace(place, binds=(*place.binds, Bind(base, GIVEN)))
        request = {
            "verb": "harvest", "base": self._work.base, "commits": commits, "limit": SEALED_BYTES,
            "commits_seconds": COMMITS_SECONDS, "file_bytes": staging.FILE_BYTES, "all_bytes": staging.ALL_BYTES,
        }  # fmt: skip
        return await ask(
            errands, request, place, Agent("harvest"),
            seconds=HARVEST_SECONDS, max_output=2 * SEALED_BYTES + MIB, parts=2,
        )  # fmt: skip

    async def _take_pack(self, name: str, pack: memoryview) -> None:
        """Check a pack that came out of the sandbox and take it in."""
        if not pack:
            return
        if len(pack) > SEALED_BYTES or bytes(pack[:4]) != b"PACK" or int.from_bytes(pack[8:12]) > OBJECTS:
            raise WorkspaceError("what came out of the sandbox is no pack, or too large")
        path = self._ours / "objects" / "pack" / f"pack-{name}.pack"
        await asyncio.to_thread(path.write_bytes, pack)
        await self._import(path)

    async def _keep_bundle(self, head: str) -> None:
        """Write the commits as a bundle on the base; none when the agent only went back in history."""
        count = await self._run("rev-list", "--count", f"{self._work.base}..{head}")
        if count.text == "0":
            return
        part = self._work.files.bundle.with_name("bundle.part")
        with part.open("wb") as file:
            await self._git.run(
                "bundle", "create", "--quiet", "-", f"{self._work.base}..{self._branch}",
                cwd=self._ours, into=file, limit=PACK_BYTES,
            )  # fmt: skip
        part.replace(self._work.files.bundle)


async def _in_place_sealed(work: _Work, errands: Errands) -> Changes | None:
    """The same as `_in_place`, beside the agent's files: the directory's configuration runs in the sandbox only."""
    request = {
        "verb": "compare", "base": work.base, "diff": _DIFF, "limit": DIFF_BYTES,
        "file_bytes": staging.FILE_BYTES, "all_bytes": staging.ALL_BYTES,
    }  # fmt: skip
    answer = await ask(
        errands, request, work.place, Agent("harvest"),
        seconds=HARVEST_SECONDS, max_output=DIFF_BYTES + MIB, parts=2,
    )  # fmt: skip
    head = answer.text("head", COMMIT)
    work.note_left_out(answer)
    files, insertions, deletions = _counts(bytes(answer.parts[1][:_COUNTS]).decode("utf-8", "replace"))
    if answer.said.get("cut"):
        work.note(WarningCode.DIFF_TOO_LARGE, "The diff is larger than 64 MiB and was not kept.")
    elif files or head != work.base:
        await asyncio.to_thread(work.files.diff.write_bytes, answer.parts[0])
    if files == 0 and head == work.base:
        return None
    return Changes(work.base, head, files, insertions, deletions)


async def _in_place(work: _Work) -> Changes | None:
    """Compare HEAD before with the files after, as the agent's uid, leaving index and objects untouched."""
    place, folder = work.place, work.place.directory
    scratch = work.folder / "snapshot"
    make_repository(scratch, None)
    hand_over(scratch, place.user)
    plain = Git(user=place.user)
    head = await head_of(plain, folder) or work.base
    objects = (await plain.run("rev-parse", "--git-path", "objects", cwd=folder)).text
    env = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(folder / objects),
    }
    git = Git(user=place.user, env=env, config=_SNAPSHOT_CONFIG)
    top = Path((await plain.run("rev-parse", "--show-toplevel", cwd=folder)).text)
    await git.run("read-tree", head, cwd=top)
    await stage(git, top, work.notices)
    files, insertions, deletions = await work.keep_diff(git, top, "--cached", work.base)
    if files == 0 and head == work.base:
        work.files.diff.unlink(missing_ok=True)
        return None
    return Changes(work.base, head, files, insertions, deletions)


def _ours(files: JobFiles) -> Path:
    """The service's own repository, for one harvest."""
    return files.root / "harvest" / "import.git"


def _checked(head: str | None) -> str:
    if head is None or COMMIT.fullmatch(head) is None:
        raise WorkspaceError("the checkout has no HEAD any more")
    return head


def _counts(text: str) -> tuple[int, int, int]:
    match = _SHORTSTAT.search(text)
    if match is None:
        return 0, 0, 0
    return int(match[1]), int(match[2] or 0), int(match[3] or 0)


def _keep_transcript(place: Place, redactor: Redactor | None) -> Notice | None:
    files = place.files
    if place.config is not None:
        return keep_transcript(place.config, files.transcript, owner=place.user, redactor=redactor)
    since = (files.root / "prepared").stat().st_mtime
    return keep_transcript(
        place.home / ".claude",
        files.transcript,
        owner=place.user,
        since=since,
        directory=place.directory,
        redactor=redactor,
    )


def _tidy(files: JobFiles) -> None:
    remove_tree(files.root / "harvest")
    for name in ("diff.part", "bundle.part"):
        (files.kept / name).unlink(missing_ok=True)


def _failed(reason: str) -> Notice:
    return Notice(WarningCode.HARVEST_FAILED, f"What the agent changed could not be kept: {reason}")
