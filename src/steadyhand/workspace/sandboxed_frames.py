"""Write the frames of a harvest inside the sandbox. Standard library only.

It is a part of the program that `sandboxed_git_client` sends into the sandbox.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from steadyhand.workspace.sandboxed_command import MAX_REASON_LENGTH, GitError

_CHUNK = 1 << 20


class Frames:
    """Writes frames to a stream."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def write(self, **fields: object) -> None:
        """Write a frame without a pack."""
        self._stream.write(json.dumps(fields).encode("ascii") + b"\n")
        self._stream.flush()

    def write_pack(self, pack: Path, section: str) -> None:
        """Write a pack."""
        with pack.open("rb") as file:
            self.write(pack=section, size=pack.stat().st_size)
            while chunk := file.read(_CHUNK):
                self._stream.write(chunk)
            self._stream.flush()


@contextlib.contextmanager
def named_if_lost(frames: Frames, what: str) -> Iterator[None]:
    """Name a part of the harvest as lost if git fails in it; the other parts go on."""
    try:
        yield
    except (GitError, OSError) as error:
        frames.write(section="lost", what=what, reason=str(error)[:MAX_REASON_LENGTH])
