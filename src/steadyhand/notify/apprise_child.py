"""The child process of apprise: reads requests from stdin, one JSON object a line, and answers each by a line.

A request has `url`, `text` (None only checks the address), `allow` and `ports`. An answer has `ok`, and if it is False
`refused`, `status` with `retry_after`, or `error`.
"""

import json
import logging
import os
import resource
import select
import sys
from typing import Any

from steadyhand.notify.connection_guard import ConnectionGuard

IDLE_SECONDS = 30.0
MAX_MEMORY_BYTES = 512 * 1024 * 1024


class LastAnswer:
    """The status and the `Retry-After` of the last HTTP answer."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.retry_after: str | None = None

    def watch(self) -> None:
        """Note each answer that `requests` receives from now on."""
        import requests  # noqa: PLC0415  # the guard is there before it

        session_class: Any = requests.Session
        send = session_class.send

        def send_and_note(session: Any, request: Any, **options: Any) -> Any:
            response = send(session, request, **options)
            self.status = response.status_code
            self.retry_after = response.headers.get("retry-after")
            return response

        session_class.send = send_and_note


class Sender:
    """Sends notifications by apprise, behind the guard."""

    def __init__(self, guard: ConnectionGuard) -> None:
        import apprise  # noqa: PLC0415  # the guard is there before it

        self._guard = guard
        self._apprise = apprise
        self._answer = LastAnswer()
        self._answer.watch()

    def handle(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        self._guard.use(request["allow"], request["ports"])
        self._answer.status = self._answer.retry_after = None
        asset = self._apprise.AppriseAsset(
            app_id="Steadyhand",
            app_desc="Steadyhand",
            app_url="",
            async_mode=False,
            http_redirects=False,
            image_url_logo="",
            image_url_mask="",
            interpret_escapes=False,
            pem_autogen=False,
            pgp_autogen=False,
            storage_mode=self._apprise.PersistentStoreMode.MEMORY,
        )
        service = self._apprise.Apprise(asset=asset)
        if not service.add(request["url"]):
            return {"ok": False, "error": "apprise does not know this address."}
        text = request["text"]
        if text is None:
            return {"ok": True}
        if service.notify(
            title=text["title"], body=text["text"], notify_type=text["kind"], body_format="text"
        ):
            return {"ok": True}
        return {
            "ok": False,
            "refused": self._guard.refusal,
            "status": self._answer.status,
            "retry_after": self._answer.retry_after,
        }


def main() -> None:
    """Answer requests until there is none for a while."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # apprise may print
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    logging.disable()  # its lines may hold parts of addresses
    guard = ConnectionGuard()
    guard.install()
    sender = Sender(guard)
    stdin = sys.stdin.buffer
    while select.select([stdin], [], [], IDLE_SECONDS)[0]:
        line = stdin.readline()
        if not line:
            return
        try:
            answer = sender.handle(json.loads(line))
        except Exception as error:  # noqa: BLE001  # the boundary of apprise: the service learns the kind of error
            answer = {"ok": False, "error": f"apprise failed ({type(error).__name__})."}
        answers.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
