"""One harvest: its folders, its base commit, its warnings and its diff."""

from collections.abc import Sequence
from pathlib import Path

from steadyhand.errors import WorkspaceError
from steadyhand.job import JobWarning
from steadyhand.job_warnings import WarningCode
from steadyhand.ports import Checkout, JobPaths
from steadyhand.workspace import shortstat
from steadyhand.workspace.filesystem import TRAVERSABLE, make_dir, remove_tree
from steadyhand.workspace.git import MIB, Git, scrub
from steadyhand.workspace.harvest_frames import HarvestFrame, malformed_reply

DIFF_BYTES = 64 * MIB
DIFF_SECONDS = 120.0
DIFF = (
    "diff", "--no-ext-diff", "--no-textconv", "--no-color", "--find-renames",
    "--ignore-submodules=none", "--submodule=short",
)  # fmt: skip
MAX_NAMED = 50
"""The number of files that one warning names."""
_MAX_NAME_LENGTH = 200
_LOSSES: dict[str, tuple[WarningCode, str]] = {
    "large": (WarningCode.FILES_TOO_LARGE, "Changed files that are too large were left out"),
    "nested": (
        WarningCode.NESTED_REPOSITORY,
        "The history of repositories inside the checkout was left out; their files are kept",
    ),
    "lost": (WarningCode.HARVEST_PARTIAL, "Some changed files could not be kept"),
    "unencoded": (
        WarningCode.FILES_UNENCODED,
        "Git cannot encode these files by their attributes; they are kept byte by byte",
    ),
}


def work_branch(job_id: str, *, sandboxed: bool) -> str:
    """Return the full name of the branch that a job's checkout begins on."""
    return f"refs/heads/steadyhand/{'work' if sandboxed else job_id}"


class HarvestContext:
    """One harvest: its folders, its base commit and its warnings. `folder` is removed after it.

    The diff and the bundle go to `results`, which are the job's own files unless the run goes on.
    """

    def __init__(
        self, checkout: Checkout, base: str, warnings: list[JobWarning], results: JobPaths | None = None
    ) -> None:
        self.checkout = checkout
        self.base = base
        self.warnings = warnings
        self.files = checkout.paths
        self.results = results or checkout.paths
        self.folder = self.results.root / "harvest"
        self.import_dir = self.folder / "import.git"
        remove_tree(self.folder)
        make_dir(self.folder, TRAVERSABLE)

    @property
    def job_id(self) -> str:
        """The id of the job."""
        return self.files.root.name

    def warn(self, code: WarningCode, message: str) -> None:
        """Add a warning."""
        self.warnings.append(JobWarning(code, message))

    def warn_named(
        self,
        sentence: str,
        names: Sequence[str],
        count: int,
        code: WarningCode = WarningCode.HARVEST_PARTIAL,
        cause: str = "",
    ) -> None:
        """Add a warning that names what it is about, up to a bound."""
        named = [
            " ".join(name[:_MAX_NAME_LENGTH].encode("utf-8", "replace").decode().split())
            for name in names[:MAX_NAMED]
        ]
        rest = f" and {count - len(named)} more" if count > len(named) else ""
        suffix = f" ({scrub(cause)})" if cause else ""
        self.warn(code, f"{sentence}: {scrub(', '.join(named))}{rest}.{suffix}")

    def warn_lost(self, names: Sequence[str], count: int, cause: str) -> None:
        """Add a warning about files that could not be kept."""
        self.warn_named("Some changed files could not be kept", names, count, cause=cause)

    def warn_losses(self, frame: HarvestFrame) -> None:
        """Add the warning about a group of files that could not be kept as they are. Raise `WorkspaceError`."""
        kind = frame.text("reason", 20)
        if kind not in _LOSSES:
            raise malformed_reply()
        code, sentence = _LOSSES[kind]
        names = frame.names("names", MAX_NAMED)
        self.warn_named(
            sentence, names, max(len(names), frame.number("count")), code, frame.sentence("cause") or ""
        )

    # --- the diff --------------------------------------------------------------------------

    async def write_diff(self, git: Git, cwd: Path, *revisions: str) -> tuple[int, int, int]:
        """Write the diff and return its size: files, insertions, deletions."""
        part = self.results.diff.with_name("diff.part")
        with part.open("wb") as file:
            result = await git.run(
                *DIFF, "--binary", "--full-index", *revisions, "--",
                cwd=cwd, stdout_file=file, limit=DIFF_BYTES, check=False, seconds=DIFF_SECONDS,
            )  # fmt: skip
        if result.overflowed:
            part.unlink()
            self.results.diff.unlink(missing_ok=True)
            self.warn(WarningCode.DIFF_TOO_LARGE, "The diff is larger than 64 MiB and was not kept.")
        elif result.code != 0:
            part.unlink()
            raise WorkspaceError(f"git diff failed: {result.reason}")
        else:
            part.replace(self.results.diff)
        counts = await git.run(*DIFF, "--shortstat", *revisions, "--", cwd=cwd, seconds=DIFF_SECONDS)
        return shortstat.parse(counts.text)
