"""The kinds of jobs of a chaos run, and what each may come to."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.chaos.model_calls import call_command

BEAT_SECONDS = 0.1
COST = "0.25"
CHECKED_OUT, IN_PLACE = "repository", "yard"
"""The names of the workspaces: a repository of which each job has a checkout, and a directory for one job at a time."""


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

    @property
    def is_exclusive(self) -> bool:
        """True if its jobs work in one directory, one after the other."""
        return ("workspace", IN_PLACE) in self.fields

    @property
    def has_changes(self) -> bool:
        """True if its jobs change a repository."""
        return ("workspace", CHECKED_OUT) in self.fields

    def prompt(self, number: int, marks: Path, notes: Path | None = None) -> str:
        """Return the prompt of a job, whose agent appends its beats to a file.

        With `notes` it calls the model before and after, and notes its calls there.
        """
        beats = max(1, int(self.seconds / BEAT_SECONDS))
        command = f"for i in $(seq {beats}); do echo {number} $$ $(date +%s.%N) >> {marks}; sleep {BEAT_SECONDS}; done"
        if notes is not None:
            call = call_command(number, notes)
            command = f"{call}; {command}; {call}"
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
LONG_KINDS = (
    *KINDS[1:6],
    KINDS[7],
    Kind(
        "changing",
        1.0,
        on_interrupt="restart",
        directives="write=new.txt:made",
        fields=(("workspace", CHECKED_OUT),),
    ),
    Kind("in-place", 0.4, fields=(("workspace", IN_PLACE),)),
)
"""Those of the long forms: two of them need what a run leaves in the object store, and a lock over all nodes."""
