"""The main function of the program inside the sandbox, which is sent as text. Standard library only.

Its input is a request as JSON. Its output is a line of JSON and then bytes, or for a harvest a stream of frames (see
`sandboxed_harvest`).
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

from steadyhand.workspace import sandboxed_git
from steadyhand.workspace.sandboxed_command import MAX_REASON_LENGTH, GitError
from steadyhand.workspace.sandboxed_compare import compare_in_place
from steadyhand.workspace.sandboxed_given import given
from steadyhand.workspace.sandboxed_harvest import harvest


def main() -> None:
    """Run the request on stdin and print the reply."""
    request = json.loads(sys.stdin.buffer.read())
    if request["verb"] == "harvest":
        try:
            harvest(request)
        except (GitError, OSError) as error:
            _print({"section": "lost", "what": "files", "reason": str(error)[:MAX_REASON_LENGTH]})
        return
    try:
        reply, parts = _commands()[request["verb"]](request)
    except (GitError, OSError) as error:
        reply, parts = {"error": str(error)[:MAX_REASON_LENGTH]}, []
    reply["parts"] = [len(part) for part in parts]
    _print(reply)
    for part in parts:
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


def _commands() -> Mapping[str, Any]:
    return {**sandboxed_git.COMMANDS, "compare": compare_in_place, "given": given}


def _print(fields: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(json.dumps(fields).encode() + b"\n")
    sys.stdout.buffer.flush()
