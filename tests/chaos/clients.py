"""The clients of a chaos run: each carries one job to its end, by whichever node answers."""

import random
import time
from typing import Any

import httpx2
from tests.chaos.checker import ENDED
from tests.chaos.deadline import Deadline
from tests.chaos.history import Call, History, Operation
from tests.chaos.kinds import Kind

from steadyhand.testing.cluster import Cluster
from steadyhand.testing.service import ADMIN_KEY, PLAIN_HTTP

CALL_SECONDS = 15.0
PAUSE_SECONDS = 0.25
SETTLE_SECONDS = 25.0
"""How long a job that could be run again by itself must stay ended."""


class JobClient:
    """The client of one job."""

    def __init__(
        self,
        cluster: Cluster,
        history: History,
        *,
        seed: int,
        number: int,
        kind: Kind,
        body: dict[str, Any],
        token: str = ADMIN_KEY,
    ) -> None:
        self._cluster = cluster
        self._history = history
        self._number = number
        self._kind = kind
        self._body = body
        self._key = f"chaos-{seed}-{number}"
        self._random = random.Random(seed * 100_003 + number)  # noqa: S311  # it has to be the same again
        self._http = httpx2.Client(
            headers={"authorization": f"Bearer {token}"},
            timeout=CALL_SECONDS,
            trust_env=False,
            verify=PLAIN_HTTP,
        )

    def run(self, deadline: Deadline) -> None:
        """Submit the job and follow it until it has ended for good, or until the deadline."""
        with self._http:
            answer = self._until_answered(
                "submit", "POST", "/v1/jobs", deadline, json=self._body, key=self._key
            )
            if answer is None:
                return
            job_id = answer.body["id"]
            if self._kind.cancels:
                deadline.pause(self._random.uniform(0.0, 2.0))
                self._until_answered("cancel", "POST", f"/v1/jobs/{job_id}/cancel", deadline)
            job = self._until_ended(job_id, deadline)
            if self._kind.retries and job is not None:
                path = f"/v1/jobs/{job_id}/retry"
                self._until_answered("retry", "POST", path, deadline, json={"after_run": len(job["runs"])})
                self._until_ended(job_id, deadline)
            path = f"/v1/jobs/{job_id}/events?limit=500"
            self._until_answered("events", "GET", path, deadline)

    def _until_ended(self, job_id: str, deadline: Deadline) -> dict[str, Any] | None:
        ended_since: float | None = None
        while not deadline.is_over:
            call = self._call("get", "GET", f"/v1/jobs/{job_id}")
            if call.succeeded:
                job = call.body
                now = time.monotonic()
                is_final = job["state"] in ENDED and not self._may_run_again(job)
                ended_since = (ended_since or now) if job["state"] in ENDED else None
                if is_final or (ended_since is not None and now - ended_since > SETTLE_SECONDS):
                    return job
            deadline.pause(PAUSE_SECONDS)
        return None

    def _may_run_again(self, job: dict[str, Any]) -> bool:
        return job["state"] == "interrupted" and self._kind.on_interrupt != "fail"

    def _until_answered(
        self, operation: Operation, method: str, path: str, deadline: Deadline, **arguments: Any
    ) -> Call | None:
        """Repeat a call, each of which is harmless to repeat, until a node answers it."""
        while not deadline.is_over:
            call = self._call(operation, method, path, **arguments)
            if call.succeeded or 400 <= call.status < 429:
                return call if call.succeeded else None
            deadline.pause(PAUSE_SECONDS)
        return None

    def _call(
        self, operation: Operation, method: str, path: str, *, json: Any = None, key: str | None = None
    ) -> Call:
        name = self._random.choice(sorted(self._cluster.nodes))
        headers = {"accept": "application/json"} | ({} if key is None else {"idempotency-key": key})
        with self._history.call(operation, self._number, name) as call:
            try:
                answer = self._http.request(
                    method, f"{self._cluster[name].url}{path}", json=json, headers=headers
                )
                call.body = answer.json()
                call.status = answer.status_code
            except (httpx2.HTTPError, ValueError):
                pass  # what became of it is not known
        return call
