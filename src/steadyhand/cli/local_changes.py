"""Find the commit of a repository here that a job works on, and pack its uncommitted changes if asked to."""

import base64
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from steadyhand.cli.console import CommandOutput
from steadyhand.cli.local_repository import (
    ChangedFile,
    GitFailed,
    PackedChanges,
    RepositoryState,
    pack_changes,
    read_state,
)
from steadyhand.cli.sanitize import one_line
from steadyhand.errors import InvalidRequest

_MAX_LISTED = 20
_MAX_NAMED = 5


def prepare(
    output: CommandOutput,
    workspace: str | None,
    *,
    is_path: bool,
    ref: str | None,
    with_changes: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Return the request's `workspace` (the top of the repository for a path), `ref` and `uncommitted`.

    For a path, print the branch and the commit, and name uncommitted files that are not part of the work. Raise
    `InvalidRequest` if there is nothing to work on; the text names the remedy.
    """
    if with_changes and ref is not None:
        raise InvalidRequest("--with-changes takes along the changes to HEAD: it cannot be used with --ref.")
    if with_changes and workspace is None:
        raise InvalidRequest(
            "--with-changes needs --repo or --workspace: the changes are those to its repository."
        )
    fields: dict[str, Any] = {"workspace": workspace, "ref": ref, "uncommitted": None}
    if not is_path and not with_changes:
        return fields
    folder = _local_path(workspace or ".") if is_path else Path.cwd()
    try:
        state = read_state(folder)
    except GitFailed as error:
        if with_changes:
            raise InvalidRequest(
                f"The changes in {one_line(folder)} cannot be read: {one_line(error)}"
            ) from error
        output.print_note(
            f"Uncommitted changes are not part of the work; they cannot be read: {one_line(error)}", "yellow"
        )
        return fields
    if state is None:
        if with_changes:
            raise InvalidRequest(
                f"git refuses to read {one_line(folder)}, or is not installed: try `git status` in it."
            )
        return fields
    if is_path:
        fields["workspace"] = str(state.root)
    if not with_changes:
        _report_without_changes(output, state, ref, quiet=quiet)
        return fields
    fields["uncommitted"] = _take_along(output, state, is_local=is_path, quiet=quiet)
    if fields["uncommitted"] is None and not is_path:
        fields["ref"] = state.commit  # another one than the workspace's default, perhaps
    return fields


def _local_path(workspace: str) -> Path:
    parts = urlsplit(workspace)
    return Path(unquote(parts.path)) if parts.scheme == "file" else Path(workspace)


def _report_without_changes(
    output: CommandOutput, state: RepositoryState, ref: str | None, *, quiet: bool
) -> None:
    place = f"{one_line(ref, 80)} of {one_line(state.root)}" if ref is not None else _place(state)
    if state.files or state.left_out or state.conflicts:
        remedy = "" if ref is not None else " `--with-changes` takes them along."
        output.print_note(
            f"Working on {place}, without the uncommitted changes here: {_names(state)}.{remedy}", "yellow"
        )
    elif not quiet:
        output.print_note(f"Working on {place}.", "dim")


def _place(state: RepositoryState) -> str:
    subject = f" ({state.subject})" if state.subject else ""
    return f"{one_line(state.root)}, {state.position}{subject}"


def _names(state: RepositoryState) -> str:
    names = [*state.conflicts, *(file.name for file in state.files), *state.left_out]
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _take_along(
    output: CommandOutput, state: RepositoryState, *, is_local: bool, quiet: bool
) -> dict[str, Any] | None:
    """List the changes and return the request's `uncommitted`; `None` if there are no changes to send."""
    packed = pack_changes(state, is_local=is_local)
    if state.left_out:
        output.print_note(
            "Repositories inside this one and the uncommitted work of submodules are not taken along: "
            f"{', '.join(state.left_out[:_MAX_NAMED])}.",
            "yellow",
        )
    if packed is None:
        if not quiet:
            output.print_note(f"Working on {_place(state)}; there are no changes to take along.", "dim")
        return None
    if not quiet:
        _list_changes(output, state, packed)
    return {
        "base": packed.base,
        "commit": packed.commit,
        "pack": base64.b64encode(packed.pack).decode("ascii"),
    }


def _list_changes(output: CommandOutput, state: RepositoryState, packed: PackedChanges) -> None:
    count = len(state.files)
    parts = [_place(state)]
    if packed.unpushed:
        parts.append(f"{packed.unpushed} unpushed {'commit' if packed.unpushed == 1 else 'commits'}")
    parts.append(f"{count} uncommitted {'file' if count == 1 else 'files'}{':' if count else '.'}")
    output.print_note(f"Working on {', with '.join((parts[0], ' and '.join(parts[1:])))}", "dim")
    for file in state.files[:_MAX_LISTED]:
        output.print_note(f"  {_letter(file)} {file.name}", "dim")
    if count > _MAX_LISTED:
        output.print_note(f"  and {count - _MAX_LISTED} more", "dim")


def _letter(file: ChangedFile) -> str:
    return "A" if file.letter == "?" else file.letter
