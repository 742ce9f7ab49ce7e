"""Real apprise in its process, against receivers on loopback that play the services."""

import asyncio
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.callbacks.certificates import Authority
from tests.callbacks.receiver import Receiver, Reply, receiving

from steadyhand.callbacks.deliverer import SendResult
from steadyhand.notify import apprise_process
from steadyhand.notify.apprise_process import AppriseProcess
from steadyhand.notify.courier import NotificationCourier
from steadyhand.notify.notifiers import SCHEMES, Notifier
from steadyhand.ports import Delivery
from steadyhand.testing.contracts.samples import NOON

TEXT = {
    "title": "Job failed: fix it",
    "text": "claude, $1.23\nhttps://steady.example/ui/jobs/1",
    "kind": "failure",
}
EVENTS: Any = frozenset({"job.ended"})


def delivery(name: str = "phone") -> Delivery:
    return Delivery(
        1, "msg_1", "job", "k_1", f"notify:{name}", None, f"notify {name}", "job.ended", json.dumps(TEXT),
        NOON, NOON, NOON + timedelta(days=1),
    )  # fmt: skip


async def send_by(process: AppriseProcess, url: str, *allow: str, times: int = 1) -> list[SendResult]:
    """Send a notification so many times by a process."""
    courier = NotificationCourier([Notifier("phone", url, EVENTS)], {"phone": process}, allow)
    return [await courier.send(delivery()) for _ in range(times)]


Send = Callable[..., list[SendResult]]


@pytest.fixture(scope="module")
def send() -> Iterator[Send]:
    """Send by one process for a whole file, as starting it takes longer than sending."""
    with asyncio.Runner() as runner:
        process = AppriseProcess()
        yield lambda url, *allow, times=1: runner.run(send_by(process, url, *allow, times=times))
        runner.run(process.close())


def send_by_a_new_process(url: str, *allow: str) -> list[SendResult]:
    """Send by a process that is started with the variables of now."""

    async def run() -> list[SendResult]:
        process = AppriseProcess()
        try:
            return await send_by(process, url, *allow)
        finally:
            await process.close()

    return asyncio.run(run())


def here(receiver: Receiver) -> str:
    return f"127.0.0.1:{receiver.port}"


def test_ntfy_takes_a_title_and_a_text_and_nothing_from_elsewhere(send: Send) -> None:
    with receiving() as receiver:
        (result,) = send(f"ntfy://{here(receiver)}/topic", here(receiver))
        assert result == SendResult(200)
        (message,) = receiver.messages
    body = json.loads(message.body)
    assert (body["topic"], body["title"], body["message"]) == ("topic", TEXT["title"], TEXT["text"])
    assert not {"attach", "filename"} & set(body)
    assert not [value for value in message.headers.values() if "http" in value]


MATRIX_ANSWER = {
    "access_token": "t", "user_id": "@u:h", "home_server": "h", "device_id": "d", "room_id": "!r:h", "event_id": "$1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("url", "answer"),
    [
        pytest.param("gotify://@HERE@/the-token-of-gotify", {}, marks=pytest.mark.long),
        ("matrix://user:password@@HERE@/%23room", MATRIX_ANSWER),
    ],
)
def test_other_services_take_it_too(send: Send, url: str, answer: dict[str, str]) -> None:
    with receiving() as receiver:
        body = json.dumps(answer).encode()
        receiver.reply = lambda _number, _message: Reply(200, {"content-type": "application/json"}, body)
        (result,) = send(url.replace("@HERE@", here(receiver)), here(receiver))
        assert result == SendResult(200), receiver.messages
        assert any(TEXT["title"] in message.body for message in receiver.messages)


@dataclass
class MailServer:
    """A mail server on loopback, and the mails that it took."""

    port: int
    mails: list[str] = field(default_factory=list)


@contextmanager
def mail_server() -> Iterator[MailServer]:
    mails: list[str] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 mail\r\n")
            while line := self.rfile.readline():
                if line.upper().startswith(b"DATA"):
                    self.wfile.write(b"354 go\r\n")
                    lines = []
                    while (part := self.rfile.readline()) != b".\r\n":
                        lines.append(part)
                    mails.append(b"".join(lines).decode())
                self.wfile.write(b"250 ok\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield MailServer(int(server.server_address[1]), mails)
        server.shutdown()
        thread.join(10)


def test_a_mail_is_sent_over_a_connection_that_is_checked(send: Send) -> None:
    with mail_server() as server:
        url = f"mailto://127.0.0.1:{server.port}?from=a@steady.example&to=b@steady.example&mode=insecure"
        (taken,) = send(url, f"127.0.0.1:{server.port}")
        assert taken == SendResult(200)
        (mail,) = server.mails
        assert "Subject: Job failed: fix it" in mail
        (refused,) = send(url)
        assert (refused.refused, len(server.mails)) == (True, 1)


def test_the_answers_of_a_service_decide_about_the_next_attempt(send: Send) -> None:
    with receiving() as receiver:
        replies = [Reply(429, {"retry-after": "77"}), Reply(500), Reply(403), Reply(200)]
        receiver.reply = lambda number, _message: replies[number - 1]
        results = send(f"ntfy://{here(receiver)}/topic", here(receiver), times=4)
    assert [(each.status, each.retry_after) for each in results] == [
        (429, "77"),
        (500, None),
        (403, None),
        (200, None),
    ]


def test_a_receiver_that_is_not_listed_is_not_reached_and_no_redirect_leads_to_one(send: Send) -> None:
    with receiving() as receiver, receiving() as inner:
        (refused,) = send(f"ntfy://{here(receiver)}/topic")
        assert refused.refused
        assert refused.error is not None
        assert "callbacks.allow" in refused.error
        receiver.reply = lambda _number, _message: Reply(307, {"location": f"{inner.url}/x"})
        (not_followed,) = send(f"ntfy://{here(receiver)}/topic", here(receiver))
        assert not_followed.status == 307
        (refused,) = send(f"ntfy://{here(receiver)}/topic?redirect=yes", here(receiver))
        assert refused.refused
        assert (len(receiver.messages), inner.messages) == (2, [])


def test_a_service_that_hangs_is_given_up_and_keeps_no_other_waiting() -> None:
    async def run(slow: Receiver, fast: Receiver) -> tuple[SendResult, SendResult, bool]:
        notifiers = [
            Notifier(name, f"ntfy://{here(receiver)}/topic", EVENTS)
            for name, receiver in (("slow", slow), ("fast", fast))
        ]
        processes = {"slow": AppriseProcess(3), "fast": AppriseProcess(30)}
        courier = NotificationCourier(notifiers, dict(processes), [here(slow), here(fast)])
        try:
            async with asyncio.TaskGroup() as group:
                hanging = group.create_task(courier.send(delivery("slow")))
                quick = await courier.send(delivery("fast"))
                was_hanging = not hanging.done() or hanging.result().error is not None
            return hanging.result(), quick, was_hanging
        finally:
            await courier.close()

    with receiving() as slow, receiving() as fast:
        slow.reply = lambda _number, _message: Reply(hangs=True)
        hanging, quick, was_hanging = asyncio.run(run(slow, fast))
    assert quick == SendResult(200)
    assert was_hanging
    assert hanging == SendResult(error="The service gave no answer within 3 s.")


def test_a_process_that_has_ended_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(url: str, allow: str) -> list[Any]:
        process = AppriseProcess()
        values = {"url": url, "text": TEXT, "allow": [allow], "ports": []}
        answers = []
        try:
            for _ in range(2):
                answers.append(await process.request(values))
                child = process._process
                assert child is not None
                child.kill()  # as if it had been idle for long
            return answers
        finally:
            await process.close()

    with receiving() as receiver:
        answers = asyncio.run(run(f"ntfy://{here(receiver)}/topic", here(receiver)))
        assert answers == [{"ok": True}] * 2
        assert len(receiver.messages) == 2


def test_no_variable_of_the_service_reaches_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with receiving() as receiver:
        assert send_by_a_new_process(f"ntfy://{here(receiver)}/topic", here(receiver)) == [SendResult(200)]
    assert not {name for name in apprise_process._PASSED_VARIABLES if "PROXY" in name}


def test_a_service_over_tls_needs_a_right_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trusted, other = Authority(tmp_path, "trusted"), Authority(tmp_path, "other")
    monkeypatch.setenv("SSL_CERT_FILE", str(trusted.file))
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    for authority, is_taken in ((trusted, True), (other, False)):
        with receiving(authority.server_context("localhost")) as receiver:
            listed = f"localhost:{receiver.port}"
            (result,) = send_by_a_new_process(f"ntfys://{listed}/topic", listed)
            assert (result == SendResult(200), len(receiver.messages)) == (is_taken, int(is_taken))


EXAMPLES = {
    "discord": "discord://4174216298/JHMHI8qBe7bk2ZwO5U711o3dV_js",
    "gotify": "gotify://host/token",
    "gotifys": "gotifys://host/token",
    "mailto": "mailto://user:pass@mail.example?to=a@b.example",
    "mailtos": "mailtos://user:pass@mail.example?to=a@b.example",
    "matrix": "matrix://user:pass@host/%23room",
    "matrixs": "matrixs://user:pass@host/%23room",
    "ntfy": "ntfy://host/topic",
    "ntfys": "ntfys://host/topic",
    "pover": "pover://" + "u" * 30 + "@" + "a" * 30,
    "slack": "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ/%23general",
    "tgram": "tgram://123456789:abcdefg_hijklmnop/12315544/",
}


def test_apprise_knows_each_scheme_of_the_list_and_names_an_address_that_is_none() -> None:
    async def check(urls: list[str]) -> list[str | None]:
        process = AppriseProcess()
        try:
            found = []
            for url in urls:
                notifier = Notifier("phone", url, EVENTS)
                found.append(await NotificationCourier([notifier], {"phone": process}, ()).check(notifier))
            return found
        finally:
            await process.close()

    assert set(EXAMPLES) == SCHEMES
    *known, unknown = asyncio.run(check([*EXAMPLES.values(), "slack://x"]))
    assert known == [None] * len(SCHEMES)
    assert unknown == "apprise does not know this address."
