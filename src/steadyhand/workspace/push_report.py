"""Read git's report of a push that failed. Pure."""

import re

from steadyhand.workspace.git import GitResult, scrub

_REJECTED = re.compile(r"!\t[^\t\n]*\t(?P<status>[^\n]+)")
_REMOTE = "remote: "
_MAX_STATUS = 200
_MAX_REMOTE_TEXT = 400


def push_failure(result: GitResult) -> str:
    """Return the reason why `git push --porcelain` failed: the status of the ref, and the words of the remote.

    Without a status the push did not come that far, and the reason is git's last error. The remote may send any text,
    so it is one line of bounded length.
    """
    rejected = _REJECTED.search(result.text)
    reason = result.reason if rejected is None else scrub(_printable(rejected["status"]))[:_MAX_STATUS]
    remote_text = _remote_text(result.stderr)
    return f"{reason}; the remote says: {remote_text}" if remote_text else reason


def _remote_text(stderr: str) -> str:
    lines = [
        _printable(line.removeprefix(_REMOTE)) for line in stderr.split("\n") if line.startswith(_REMOTE)
    ]
    text = scrub(" ".join(line for line in lines if line))
    return text if len(text) <= _MAX_REMOTE_TEXT else text[: _MAX_REMOTE_TEXT - 1].rstrip() + "…"


def _printable(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())
