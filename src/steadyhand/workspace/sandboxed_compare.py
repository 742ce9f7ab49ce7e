"""Compare a directory in place with a commit, inside the sandbox. Standard library only.

It is a part of the program that `sandboxed_git_client` sends into the sandbox.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steadyhand.workspace.sandboxed_command import GitError, decode_line, git
from steadyhand.workspace.sandboxed_files import Access, Given
from steadyhand.workspace.sandboxed_staging import Staging, StagingLimits, losses_of


def compare_in_place(request: Mapping[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Return the diff of a directory in place against a commit, and its size; its index and objects do not change."""
    tree = Path(os.fsdecode(git("rev-parse", "--show-toplevel").rstrip(b"\n")))
    if request["top_only"] and tree != Path.cwd():
        raise GitError("the directory is not the top of its repository")
    head = decode_line(git("rev-parse", "--verify", "--quiet", "HEAD^{commit}"))
    scratch = Path(request["scratch"])
    (scratch / "objects").mkdir(parents=True)
    objects = Path.cwd() / os.fsdecode(git("rev-parse", "--git-path", "objects").rstrip(b"\n"))
    env = {
        "GIT_INDEX_FILE": str(scratch / "index"),
        "GIT_OBJECT_DIRECTORY": str(scratch / "objects"),
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": str(objects),
    }
    git("read-tree", head, env=env, cwd=tree)
    access = Access()
    limits = StagingLimits(request["file_bytes"], request["all_bytes"], request["all_bytes"])
    staging = Staging(tree, env, scratch, limits, access, given=Given({}))
    try:
        for _ in staging.stage(staging.changed_names()):
            pass
    finally:
        access.restore()
    patch, command = scratch / "patch", [*request["diff"], "--cached"]
    git(*command, "--binary", "--full-index", request["base"], "--", env=env, cwd=tree, stdout_file=patch)
    cut = patch.stat().st_size > request["limit"]
    counts = git(*command, "--shortstat", request["base"], "--", env=env, cwd=tree)
    reply = {"head": head, "cut": cut, "losses": losses_of(staging.losses)}
    return reply, [b"" if cut else patch.read_bytes(), counts]
