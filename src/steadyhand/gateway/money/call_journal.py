"""A file with the calls that have ended and are not in the ledger yet, for the next start after a kill.

A call is written behind its answer, so its agent may go on before it is stored. This file has it at once. It is not
synced: it outlives a kill of the service, as the agent does, and not a crash of the machine.
"""

import json
import os
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from steadyhand.ports import ModelCall, TokenCounts
from steadyhand.text_lines import split_lines

FILE_NAME = "run/calls.journal"
MAX_BYTES = 4 << 20
"""The size from which nothing is added: far more than the calls that may wait for the store."""
_CALL_FIELDS = tuple(each.name for each in fields(ModelCall))
_TOKEN_FIELDS = tuple(each.name for each in fields(TokenCounts))


class CallJournal:
    """The file of one data directory. It belongs to one event loop; a write of a line takes microseconds."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / FILE_NAME
        self._file: int | None = None
        self._size = 0
        self._log = structlog.get_logger("steadyhand.gateway")

    def open(self) -> None:
        """Open the file for `add`. Without it, as on a disk that is full, calls are only in memory."""
        try:
            self._path.parent.mkdir(mode=0o711, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._file).st_size
        except OSError as error:
            self._log.warning("ledger.journal_failed", error=str(error))

    def close(self) -> None:
        """Close the file; what is in it stays."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def add(self, call: ModelCall) -> None:
        """Write a settled call."""
        if self._file is None or self._size >= MAX_BYTES:
            return
        try:
            self._size += os.write(self._file, _to_line(call))
        except OSError as error:
            self._log.warning("ledger.journal_failed", error=str(error))

    def clear(self) -> None:
        """Forget all calls: each is in the ledger."""
        if self._file is None or not self._size:
            return
        try:
            os.ftruncate(self._file, 0)
        except OSError as error:
            self._log.warning("ledger.journal_failed", error=str(error))
        else:
            self._size = 0

    def read(self) -> list[ModelCall]:
        """Return the calls that an earlier process left, without a line that its kill has cut. Blocks."""
        try:
            text = self._path.read_text("utf-8", "replace")
        except OSError:
            return []
        calls = []
        for line in split_lines(text):
            try:
                calls.append(_from_line(line))
            except (ValueError, TypeError, KeyError):
                self._log.warning("ledger.journal_cut", characters=len(line))
        return calls


def _to_line(call: ModelCall) -> bytes:
    # Each call of a model writes one: `asdict` copies deeply, and takes several times as long.
    values = {name: getattr(call, name) for name in _CALL_FIELDS}
    values["tokens"] = {name: getattr(call.tokens, name) for name in _TOKEN_FIELDS}
    values["at"] = call.at.isoformat()
    return json.dumps(values).encode() + b"\n"


def _from_line(line: str) -> ModelCall:
    values: dict[str, Any] = json.loads(line)
    tokens = TokenCounts(**values.pop("tokens"))
    return ModelCall(**{**values, "at": datetime.fromisoformat(values["at"]), "tokens": tokens})
