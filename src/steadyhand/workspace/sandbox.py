"""The boundary around an agent. The one level there is so far is `none`."""

from typing import Literal

from steadyhand.ports import Command, Place


class NoSandbox:
    """Level `none`: the agent runs with nothing around it but its own uid; the service warns at each start."""

    level: Literal["none", "bwrap"] = "none"

    def wrap(self, command: Command, place: Place) -> Command:  # noqa: ARG002  # the port's signature
        """Give the command back as it is."""
        return command
