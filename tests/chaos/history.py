"""The history of a chaos run: each call with its answer and its times, as the clients saw them."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Operation = Literal["submit", "get", "cancel", "retry", "events"]

NO_ANSWER = 0
"""The status of a call that was cut off: it may have had its effect."""


@dataclass(slots=True)
class Call:
    """One call of a client. `job` is the number of the job in the run, `began` and `ended` are of one clock."""

    operation: Operation
    job: int
    node: str
    began: float
    ended: float = 0.0
    status: int = NO_ANSWER
    body: dict[str, Any] = field(default_factory=dict)

    @property
    def succeeded(self) -> bool:
        """True if it was answered well."""
        return 200 <= self.status < 300


class History:
    """The calls of all clients, in the order of their ends."""

    def __init__(self) -> None:
        self._calls: list[Call] = []
        self._lock = threading.Lock()

    @contextmanager
    def call(self, operation: Operation, job: int, node: str) -> Iterator[Call]:
        """Note a call for the length of the block, which sets its answer."""
        call = Call(operation, job, node, time.monotonic())
        try:
            yield call
        finally:
            call.ended = time.monotonic()
            with self._lock:
                self._calls.append(call)

    def calls(self) -> list[Call]:
        """Return the calls so far."""
        with self._lock:
            return list(self._calls)

    def save(self, path: Path) -> None:
        """Write a line of JSON for each call."""
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(call)) + "\n" for call in self.calls())
