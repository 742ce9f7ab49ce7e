"""The boundary around an agent. The one level there is so far is `none`."""

from typing import Literal

from steadyhand.agents import Agent
from steadyhand.ports import Command, Place, View


class NoSandbox:
    """Level `none`: the agent runs with nothing around it but its own uid; the service warns at each start."""

    level: Literal["none", "bwrap"] = "none"

    def view(self, place: Place) -> View:
        """Give the folders as they lie on this machine."""
        return place.plain_view

    def wrap(self, command: Command, place: Place, agent: Agent) -> Command:  # noqa: ARG002  # the port's signature
        """Give the command back as it is."""
        return command
