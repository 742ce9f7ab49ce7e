"""Plain words for the failures of git on a repository, and which of them a retry cannot mend."""

import re
from collections.abc import Sequence

from steadyhand.errors import WorkspaceError

MISMATCHED_FORMATS = re.compile(r"mismatched algorithms: client (sha1|sha256); server (sha1|sha256)")
MISSING_REF = re.compile(r"couldn't find remote ref|not our ref|no such remote ref|does not advertise")
_PERMANENT: Sequence[tuple[re.Pattern[str], str | None]] = (
    (
        re.compile(r"lazy fetching disabled|from promisor remote|promisor"),
        (
            "it is a partial clone, and objects are missing in it. "
            "Name the repository that it was cloned from, or clone it anew without --filter."
        ),
    ),
    (
        MISMATCHED_FORMATS,
        (
            "its object format is not the one that it had when it was first fetched. "
            "Stop the service and remove the repository's mirror from the data directory."
        ),
    ),
    (re.compile(r"could not read (?:Username|Password) for"), "it needs a login, and [git] has none for it."),
    (re.compile(r"Authentication failed for|HTTP Basic: Access denied"), "the login was refused."),
    (re.compile(r"requested URL returned error: 40[013]"), None),
    (re.compile(r"requested URL returned error: 404|repository '.*' not found|Repository not found"), None),
    (re.compile(r"Permission denied \((?:publickey|password|keyboard|gssapi)"), None),
    (re.compile(r"Host key verification failed"), None),
    (re.compile(r"does not appear to be a git repository|not a git repository|not a gitdir"), None),
    (re.compile(r"SSL certificate problem|server certificate verification failed|SSL: no alternative"), None),
    (re.compile(r"dubious ownership|unable to find remote helper|transport '.*' not allowed"), None),
    (re.compile(r"unknown repository extension|Expected git repo version|bad config"), None),
    (MISSING_REF, None),
)
_CHECKOUT_PERMANENT = re.compile(
    r"File name too long|unable to create file .*: (?:Invalid argument|Is a directory)|invalid path '"
)


class RemoteGitError(WorkspaceError):
    """A failure of git on a remote repository."""

    def __init__(self, detail: str, stderr: str, *, retryable: bool) -> None:
        super().__init__(detail, retryable=retryable)
        self.stderr = stderr


def explain(reason: str, stderr: str) -> RemoteGitError:
    """Return the error of a git command on a remote; `reason` is the line of `stderr` that names the cause."""
    for pattern, words in _PERMANENT:
        if pattern.search(stderr):
            return RemoteGitError(reason if words is None else words, stderr, retryable=False)
    return RemoteGitError(reason, stderr, retryable=True)


def is_permanent_checkout_error(reason: str) -> bool:
    """Return True for a failure of `git checkout` that the same commit meets again."""
    return _CHECKOUT_PERMANENT.search(reason) is not None
