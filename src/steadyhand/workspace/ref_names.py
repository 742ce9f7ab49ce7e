"""The names by which a job asks for a commit. Some name the repository's own code, others code of a stranger.

Branches, tags and HEAD belong to the repository: who can write there may do more than who can read it. Anybody can
open a pull request or a merge request, so each other ref, and a commit that no branch and no tag reaches, is foreign.
"""

import re

COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
"""The id of a commit: of SHA-1 or SHA-256."""
HEAD_REF = "refs/steadyhand/HEAD"
FETCHED_PREFIX = "refs/steadyhand/fetched/"
"""The place in a mirror of refs that were fetched on demand."""
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,63}")
_INVALID = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/$|^/|\.lock$|^-|^$|\.$")
_MAX_LENGTH = 1024
_OWN_PREFIXES = ("refs/heads/", "refs/tags/")


def is_valid(ref: str) -> bool:
    """Return True for a text that can name a ref or a commit."""
    return len(ref) <= _MAX_LENGTH and _INVALID.search(ref) is None


def own_names(ref: str | None) -> list[str]:
    """Return the refs of a mirror that a name may mean, first the first: HEAD, a branch or a tag."""
    if ref in (None, "HEAD"):
        return [HEAD_REF]
    if ref.startswith("refs/"):
        return [ref] if ref.startswith(_OWN_PREFIXES) else []
    return [f"refs/heads/{ref}", f"refs/tags/{ref}"]


def may_be_commit(ref: str | None) -> bool:
    """Return True for a text that may be the beginning of a commit's id."""
    return ref is not None and (COMMIT.fullmatch(ref) or _SHORT_COMMIT.fullmatch(ref)) is not None


def foreign_name(ref: str | None) -> str | None:
    """Return the full name of the foreign ref that a name may mean: `pull/7/head` is `refs/pull/7/head`."""
    if ref is None or ref.startswith(_OWN_PREFIXES):
        return None
    if ref.startswith("refs/"):
        return ref
    return f"refs/{ref}" if "/" in ref else None
