"""The ways in which a job gets its process: started for it, taken from those that wait, or kept from the turn before.

A service of a mode sends every job its way, and `wait_until_ended` holds that the job really went it: no attack in a
process that waited can silently be one in an ordinary process.
"""

import secrets
from collections.abc import Mapping
from typing import Any, Literal

import httpx2
from tests.sandboxed.warm_services import events_of, wait_for_slot

from steadyhand.testing.service import Service, wait_until

Mode = Literal["cold", "warm", "live"]
WAITING_MODES: tuple[Mode, ...] = ("warm", "live")
MODES: tuple[Mode, ...] = ("cold", *WAITING_MODES)
FIRST_TURN = "[[standin: text=first]]"


def agent_tables(agents: Mapping[str, str], mode: Mode) -> str:
    """Return the tables of agents with these lines; the processes of each wait, and stay, as the mode needs it."""
    waiting = "" if mode == "cold" else "warm = 1\n"
    waiting += "live_seconds = 300\n" if mode == "live" else ""
    return "".join(f"[agents.{name}]\n{waiting}{lines}\n" for name, lines in agents.items())


class ModeService(Service):
    """A service whose jobs have their processes in one way. Each job names an agent that has one waiting."""

    mode: Mode = "cold"

    def submit(self, prompt: str, **fields: Any) -> dict[str, Any]:
        """Ask for a job as `Service.submit` does, of the agent's own workspace; in mode `live` for a second turn.

        `client` asks for it, in place of the one that may do everything.
        """
        client = fields.pop("client", self.client)
        agent = fields.pop("agent")
        # Each job has a caller of its own, so none gets the process that another one has left.
        caller = {"metadata": {"user": secrets.token_hex(4)}}
        if self.mode != "cold":
            wait_for_slot(self, agent)
        if self.mode != "live":
            return self._post(client, "/v1/jobs", {"prompt": prompt, "agent": agent, **caller, **fields})
        first = self._post(client, "/v1/jobs", {"prompt": FIRST_TURN, "agent": agent, **caller})["id"]
        wait_until(lambda: any(each["job"] == first for each in events_of(self, "warm.kept")))
        return self._post(client, f"/v1/jobs/{first}/turns", {"prompt": prompt, **fields})

    def wait_until_ended(self, job_id: str, seconds: float = 30.0) -> dict[str, Any]:
        """Return a job once it has ended; it has to have had its process in the way of the mode."""
        job = super().wait_until_ended(job_id, seconds)
        assert self.mode_of(job_id) == self.mode, self.log_since_start[-3000:]
        return job

    def mode_of(self, job_id: str) -> Mode:
        """Return the way in which a job got its process, by the log."""
        taken = [each for each in events_of(self, "warm.taken") if each["job"] == job_id]
        lost = [each for each in events_of(self, "warm.lost") if each["job"] == job_id]
        if not taken or lost:
            return "cold"
        return "live" if taken[-1]["is_live"] else "warm"

    def _post(self, client: httpx2.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = client.post(path, json=dict(body))
        assert answer.status_code == 202, answer.text
        return dict(answer.json())
