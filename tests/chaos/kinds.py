"""The kinds of jobs of a chaos run, and what each may come to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

BEAT_SECONDS = 0.1
COST = "0.25"


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of job. Its agent notes its beats for `seconds`; then it answers."""

    name: str
    seconds: float
    on_interrupt: str = "fail"
    cancels: bool = False
    """Its client cancels it while it runs or waits."""
    retries: bool = False
    """Its client asks for a second run once it has ended."""
    directives: str = ""
    fields: tuple[tuple[str, Any], ...] = ()

    def prompt(self, number: int, marks: Path) -> str:
        """Return the prompt of a job, whose agent appends its beats to a file."""
        beats = max(1, int(self.seconds / BEAT_SECONDS))
        command = f"for i in $(seq {beats}); do echo {number} $$ $(date +%s.%N) >> {marks}; sleep {BEAT_SECONDS}; done"
        return f"[[standin: say=begin run='{command}' {self.directives} cost={COST} text=done]]"


KINDS = (
    Kind("short", 0.2),
    Kind("long", 3.0),
    Kind("restarted", 2.0, on_interrupt="restart"),
    Kind("restarted-long", 4.0, on_interrupt="restart"),
    Kind("cancelled", 4.0, cancels=True),
    Kind("retried", 0.5, retries=True),
    Kind("structured", 0.3, fields=(("output_schema", {"type": "object"}),)),
    Kind("urgent", 0.3, directives="say=again flood=20K", fields=(("priority", 5),)),
)
