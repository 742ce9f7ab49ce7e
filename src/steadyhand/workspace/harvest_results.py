"""Write the results of a harvest from the service's own repository: the diff and the bundle."""

from steadyhand.errors import WorkspaceError
from steadyhand.job import Changes, RefChange
from steadyhand.job_warnings import WarningCode
from steadyhand.workspace.git import MIB, Git, GitResult
from steadyhand.workspace.harvest_context import DIFF_SECONDS, HarvestContext
from steadyhand.workspace.harvest_import import IMPORT_BOUNDS, IMPORT_CONFIG, Imported
from steadyhand.workspace.saved_refs import GivenRefs, SavedRef, deleted_change

BUNDLE_BYTES = 1100 * MIB
"""The size limit of a bundle: no less than all that may come out of a checkout."""
_BUNDLE_SECONDS = 300.0
_CONNECTED_HEADS = 2000


class HarvestResults:
    """The results of one import."""

    def __init__(self, context: HarvestContext, imported: Imported, given_refs: GivenRefs) -> None:
        self._context = context
        self._imported = imported
        self._given_refs = given_refs
        self._repository = context.import_dir
        self._branch = f"refs/heads/steadyhand/{context.job_id}"
        self._git = Git(env={"GIT_DIR": str(self._repository), **IMPORT_BOUNDS}, config=IMPORT_CONFIG)

    async def write(self) -> Changes | None:
        """Write the diff and the bundle, and return the changes; `None` if there are none."""
        base, imported = self._context.base, self._imported
        refs = await self._store_refs()
        deleted = [
            each for each in (deleted_change(name, self._given_refs) for name in imported.deleted) if each
        ]
        if imported.head == base and not refs and not deleted:
            return None
        files = insertions = deletions = 0
        if imported.head != base:
            await self._run("update-ref", self._branch, imported.head)
            files, insertions, deletions = await self._write_checked_diff(base, imported.head)
        else:
            self._context.results.diff.unlink(missing_ok=True)
        carried = await self._write_bundle()
        changes = [*(self._change_of(each, name, carried) for name, each in refs), *deleted]
        return Changes(
            base, imported.head, files, insertions, deletions, refs=tuple(changes), refs_omitted=imported.omitted
        )  # fmt: skip

    def _change_of(self, saved: SavedRef, name: str, carried: frozenset[str]) -> RefChange:
        return saved.to_change(self._given_refs, name if name in carried else None)

    async def _run(self, *arguments: str, stdin: bytes = b"") -> GitResult:
        return await self._git.run(*arguments, cwd=self._repository, stdin=stdin)

    # --- the diff --------------------------------------------------------------------------

    async def _write_checked_diff(self, base: str, head: str) -> tuple[int, int, int]:
        """Write the diff and return its size. Who reviews the diff sees exactly the tree of `head`, or is warned."""
        size = await self._context.write_diff(self._git, self._repository, base, head)
        if await self._diff_makes(base, head):
            return size
        await self._context.write_diff(self._git, self._repository, "--no-renames", base, head)
        if not await self._diff_makes(base, head):
            self._context.warn(
                WarningCode.DIFF_DIFFERS,
                "The diff does not show all that the commits change; see the bundle.",
            )
        return size

    async def _diff_makes(self, base: str, head: str) -> bool:
        """Return true if the diff, applied to the tree of `base`, makes that of `head`; also if there is none."""
        diff = self._context.results.diff
        if not diff.exists():
            return True  # it is too large, and a warning says so
        env = {"GIT_DIR": str(self._repository), "GIT_INDEX_FILE": str(self._repository / "check.index")}
        git = Git(env=env | IMPORT_BOUNDS, config=IMPORT_CONFIG)
        await git.run("read-tree", base, cwd=self._repository)
        if diff.stat().st_size:
            applied = await git.run(
                "apply", "--cached", "--whitespace=nowarn", str(diff),
                cwd=self._repository, check=False, seconds=DIFF_SECONDS,
            )  # fmt: skip
            if applied.code != 0:
                return False
        wanted = await git.run("rev-parse", "--verify", f"{head}^{{tree}}", cwd=self._repository)
        return (await git.run("write-tree", cwd=self._repository)).text == wanted.text

    # --- the bundle ------------------------------------------------------------------------

    async def _store_refs(self) -> list[tuple[str, SavedRef]]:
        """Store the saved refs in the repository and return them by their names there; a lost one has none."""
        named = [(each.bundle_ref(self._context.job_id, number), each)
                 for number, each in enumerate(self._imported.saved)]  # fmt: skip
        stored = [(name, each) for name, each in named if each.lost is None]
        if stored and not await self._update_refs(stored):
            # One impossible name costs only itself.
            for name, each in list(stored):
                if not await self._update_refs([(name, each)]):
                    self._context.warn_named(
                        "These could not be kept", [each.name], 1, cause="its name is refused"
                    )
        return named

    async def _update_refs(self, refs: list[tuple[str, SavedRef]]) -> bool:
        lines = "".join(f"update {name}\0{each.value}\0\0" for name, each in refs)
        result = await self._git.run(
            "update-ref", "--stdin", "-z",
            cwd=self._repository, stdin=lines.encode("utf-8", "surrogateescape"), check=False,
        )  # fmt: skip
        return result.code == 0

    async def _write_bundle(self) -> frozenset[str]:
        """Write the commits after the base and the saved refs as a bundle, and return the names in it.

        Nothing is written if there is nothing new: the agent only moved back in history.
        """
        base, head, bundle = self._context.base, self._imported.head, self._context.results.bundle
        negative = [base]
        if not await self._brings_given_commits(head):
            negative += self._given_refs.commits[:_CONNECTED_HEADS]
        names = [self._branch] if head != base else []
        listing = await self._run("for-each-ref", "--format=%(refname)", "refs/steadyhand/jobs")
        names += [name for name in listing.text.split("\n") if name]
        lines = "".join(f"{line}\n" for line in (*names, *(f"^{each}" for each in negative)))
        stdin = lines.encode("utf-8", "surrogateescape")
        part = bundle.with_name("bundle.part")
        with part.open("wb") as file:
            result = await self._git.run(
                "bundle", "create", "--quiet", "-", "--stdin", cwd=self._repository, stdout_file=file,
                stdin=stdin, limit=BUNDLE_BYTES, seconds=_BUNDLE_SECONDS, check=False,
            )  # fmt: skip
        if result.code != 0 or result.overflowed:
            part.unlink(missing_ok=True)
            bundle.unlink(missing_ok=True)
            if "empty bundle" not in result.stderr and names:
                raise WorkspaceError(f"git bundle failed: {result.reason}")
            return frozenset()
        part.replace(bundle)
        heads = await self._run("bundle", "list-heads", str(bundle))
        return frozenset(line.partition(" ")[2] for line in heads.text.split("\n") if line)

    async def _brings_given_commits(self, head: str) -> bool:
        """Return true if the agent's commits build on other branches that it was given.

        A later run that applies the bundle has the base, but perhaps no longer these branches.
        """
        counts = []
        for negative in (
            [self._context.base],
            [self._context.base, *self._given_refs.commits[:_CONNECTED_HEADS]],
        ):
            lines = "".join(f"{line}\n" for line in (head, *(f"^{each}" for each in negative)))
            counted = await self._run(
                "rev-list", "--count", "--ignore-missing", "--stdin", stdin=lines.encode()
            )
            counts.append(counted.text)
        return counts[0] != counts[1]
