"""The service's part of a run that may outlive it: when its supervisor keeps it, and the notes for a later service."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from steadyhand.ports import HoldSpec
from steadyhand.runner.process.held_record import (
    Holding,
    append_note,
    mark_left,
    mark_settled,
    read_notes,
    remove_record,
)
from steadyhand.runner.process.spool import SpoolReader
from steadyhand.runner.process.supervisor_channel import SupervisorChannel

INPUTS, REPLIES = "inputs", "replies"
"""The files of a held run with its messages to the agent, and with the requests that were replied to."""


class ProcessHold:
    """Holds the runs of one process. Without a folder none of them is held."""

    def __init__(self, channel: SupervisorChannel) -> None:
        self.folder: Path | None = None
        """The folder of a held run, whose supervisor has copies of the pipes."""
        self.is_kept = False
        """True if the run goes on when the service dies now."""
        self.is_left = False
        """True if it goes on when this process of the service lets it go."""
        self._channel = channel
        self._may_keep = False
        self._holding: Holding | None = None
        """The files of a process that was started here."""
        self._write_record: Callable[[Holding], bool] = lambda _holding: False

    def open(self, holding: Holding, write_record: Callable[[Holding], bool]) -> None:
        """Use the files of a process that was started here. A process that waits for its run has no record yet."""
        self.folder, self._holding, self._write_record = holding.spec.folder, holding, write_record
        self._may_keep = bool(holding.spec.job_id) and write_record(holding)

    def reopen(self, folder: Path, *, is_alive: bool) -> None:
        """Use the files of a run that an earlier service left; it is kept already if it is alive."""
        self.folder = folder
        self._may_keep = self.is_kept = is_alive

    def begin(self, spec: HoldSpec, readers: Sequence[object]) -> None:
        """Hold the next run of a process that waited for it, if it was started to be held; call `keep` later.

        A run whose files cannot be made is not held: it ends with the service.
        """
        holding = self._holding
        if holding is None or spec.folder == holding.spec.folder:
            return
        try:
            offsets = [reader.restart() for reader in readers if isinstance(reader, SpoolReader)]
            holding.move_to(replace(spec, facts={**spec.facts, "offsets": offsets, "waited": True}))
        except OSError:
            return
        self.folder = spec.folder
        self._may_keep = self._write_record(holding)

    def end(self) -> None:
        """Let a process whose run is over and stored wait for the next one: it ends with the service until then."""
        holding = self._holding
        if holding is None or not holding.spec.job_id:
            return
        self.drop()
        try:
            holding.move_away()
        except OSError:
            self._holding = None  # no later run of it is held
        self.folder = holding.spec.folder

    def close(self) -> None:
        """Remove the files of a process that waited for its run."""
        if self._holding is not None and not self._holding.spec.job_id:
            remove_record(self._holding.spec.folder)

    # --- keeping it ------------------------------------------------------------------------------

    def keep(self) -> None:
        """Let the run outlive the service from now on: the agent has all that it needs to begin."""
        if self._may_keep:
            self.is_kept = True
            self.send_keep(is_kept=True)

    def leave(self, *, is_running: bool) -> bool:
        """Let the run go on without this service when it is closed; return False if it is not kept."""
        if not self.is_kept or self.folder is None or not is_running:
            return False
        self.is_left = mark_left(self.folder)
        return self.is_left

    def settle(self) -> None:
        """Note that the agent has answered, and that its end says nothing more: the service is about to kill it."""
        if self.folder is not None and self.is_kept:
            mark_settled(self.folder)

    def drop(self) -> None:
        """Let the run end with the service again."""
        self._may_keep = False
        if self.is_kept:
            self.is_kept = False
            self.send_keep(is_kept=False)

    def send_keep(self, *, is_kept: bool) -> None:
        """Let the supervisor know if it keeps the agent after the service."""
        self._channel.send({"keep": is_kept})

    # --- notes -----------------------------------------------------------------------------------

    def note_input(self, text: str) -> None:
        """Note a message to the agent for a later service, if the run is held."""
        if self.folder is not None:
            append_note(self.folder, INPUTS, text)

    def noted_inputs(self) -> Sequence[str]:
        """Return the messages that were noted, also by an earlier service."""
        return () if self.folder is None else read_notes(self.folder, INPUTS)

    def note_reply(self, request_id: str) -> None:
        """Note that the agent has the reply to a request: a later service reads the request again."""
        if self.folder is not None:
            append_note(self.folder, REPLIES, request_id)

    def noted_replies(self) -> Sequence[str]:
        """Return the requests whose replies were noted, also by an earlier service."""
        return () if self.folder is None else read_notes(self.folder, REPLIES)
