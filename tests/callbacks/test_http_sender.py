"""Sending over real sockets: the address that was checked, no redirect, bounds."""

import asyncio
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

import httpcore2
import pytest
from tests.callbacks.certificates import Authority
from tests.callbacks.receiver import Received, Receiver, Reply, receiving

from steadyhand.addresses import Address
from steadyhand.callbacks.address_guard import AddressGuard, parse_callback_url
from steadyhand.callbacks.deliverer import SendResult
from steadyhand.callbacks.http_sender import MAX_RESPONSE_BYTES
from steadyhand.callbacks.lazy_sender import LazySender


async def loopback(_name: str, _port: int) -> Sequence[Address]:
    return [ipaddress.ip_address("127.0.0.1")]


def send(receiver: Receiver, url: str, *allow: str, seconds: float = 10) -> SendResult:
    return send_all(receiver, url, *allow, seconds=seconds)[0]


def send_all(
    receiver: Receiver,
    *urls_and_allow: str,
    seconds: float = 10,
    times: int = 1,
    guard: AddressGuard | None = None,
) -> list[SendResult]:
    url, *allow = urls_and_allow

    async def scenario() -> list[SendResult]:
        sender = LazySender(
            guard
            or AddressGuard(allow or [f"*.example:{receiver.port}", f"127.0.0.1:{receiver.port}"], loopback),
            max_connections=4,
            seconds=seconds,
        )
        try:
            headers = {"content-type": "application/json", "webhook-id": "msg_1"}
            return [await sender(parse_callback_url(url), headers, b"{}") for _ in range(times)]
        finally:
            await sender.close()

    return asyncio.run(scenario())


def test_a_message_is_posted_to_the_path_with_the_name_of_the_host() -> None:
    with receiving() as receiver:
        url = f"http://n8n.example:{receiver.port}/hook/7?a=b%20c"
        assert send(receiver, url) == SendResult(200)
        (message,) = receiver.messages
        assert (message.path, message.body) == ("/hook/7?a=b%20c", "{}")
        assert message.headers["host"] == f"n8n.example:{receiver.port}"
        assert message.headers["content-type"] == "application/json"
        assert message.headers["webhook-id"] == "msg_1"


def test_a_redirect_is_an_answer_and_is_not_followed() -> None:
    with receiving() as receiver:
        receiver.reply = lambda _number, _message: Reply(307, {"location": f"{receiver.url}/other"})
        assert send(receiver, f"{receiver.url}/") == SendResult(307)
        assert [message.path for message in receiver.messages] == ["/"]


@pytest.mark.parametrize("status", [429, 503])
def test_a_retry_after_is_in_the_answer(status: int) -> None:
    with receiving() as receiver:
        receiver.reply = lambda _number, _message: Reply(status, {"Retry-After": "30"})
        assert send(receiver, f"{receiver.url}/") == SendResult(status, "30")


def test_a_name_that_leads_to_this_machine_gets_no_connection() -> None:
    with receiving() as receiver:
        result = send(receiver, f"http://n8n.example:{receiver.port}/", "other.example")
        assert result.refused
        assert receiver.messages == []


def test_a_name_that_is_bound_anew_after_its_check_gets_no_connection() -> None:
    with receiving() as receiver:
        answers = iter((["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"]))

        async def rebinding(_name: str, _port: int) -> Sequence[Address]:
            return [ipaddress.ip_address(each) for each in next(answers)]

        guard = AddressGuard([f"n8n.example:{receiver.port}"], rebinding)
        url = f"http://n8n.example:{receiver.port}/"
        asyncio.run(guard.check(url))
        receiver.reply = lambda _number, _message: Reply(headers={"connection": "close"})
        first, second = send_all(receiver, url, times=2, guard=guard)
        assert first == SendResult(200)
        assert second.refused
        assert len(receiver.messages) == 1


def test_a_receiver_that_hangs_has_its_time_and_no_more() -> None:
    with receiving() as receiver:
        receiver.reply = lambda _number, _message: Reply(hangs=True)
        result = send(receiver, f"{receiver.url}/", seconds=3)  # half of it is for the connection
        assert (result.status, result.error) == (None, "The receiver gave no answer within 3 s.")


def test_a_receiver_that_is_not_there_is_no_answer() -> None:
    with receiving() as receiver:
        pass
    result = send(receiver, f"{receiver.url}/")
    assert (result.status, result.error) == (None, "The receiver could not be reached.")


def test_a_message_is_not_sent_without_tls_to_an_https_address() -> None:
    with receiving() as receiver:
        result = send(receiver, f"https://127.0.0.1:{receiver.port}/")
        assert result.status is None
        assert result.error is not None
        assert receiver.messages == []


def test_an_endless_answer_is_not_read_to_its_end() -> None:
    with receiving() as receiver:
        sent: list[int] = []

        def reply(number: int, _message: Received) -> Reply:
            sent.append(number)
            return Reply(200, {"content-length": str(1 << 40)}, b"x" * (4 * MAX_RESPONSE_BYTES))

        receiver.reply = reply
        assert send_all(receiver, f"{receiver.url}/", times=2) == [SendResult(200)] * 2
        assert sent == [1, 2]


def test_two_messages_share_a_connection() -> None:
    opened: list[tuple[str, int]] = []

    async def counting(name: str, port: int) -> Sequence[Address]:
        opened.append((name, port))
        return await loopback(name, port)

    with receiving() as receiver:
        guard = AddressGuard([f"n8n.example:{receiver.port}"], counting)
        url = f"http://n8n.example:{receiver.port}/"
        assert send_all(receiver, url, times=3, guard=guard) == [SendResult(200)] * 3
        assert opened == [("n8n.example", receiver.port)]


def test_certificates_are_checked() -> None:
    context = httpcore2.default_ssl_context()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(
    ("host", "days", "signed_by", "is_taken"),
    [
        ("n8n.example", 30, "trusted", True),
        ("n8n.example", 30, "other", False),
        ("other.example", 30, "trusted", False),
        ("n8n.example", -1, "trusted", False),
    ],
    ids=["right", "unknown authority", "another name", "expired"],
)
def test_a_receiver_over_tls_needs_a_right_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, days: int, signed_by: str, *, is_taken: bool
) -> None:
    authorities = {name: Authority(tmp_path, f"authority {name}") for name in ("trusted", "other")}
    monkeypatch.setenv("SSL_CERT_FILE", str(authorities["trusted"].file))
    with receiving(authorities[signed_by].server_context(host, days)) as receiver:
        result = send(receiver, f"https://n8n.example:{receiver.port}/hook")
        if is_taken:
            assert result == SendResult(200)
            assert [message.path for message in receiver.messages] == ["/hook"]
        else:
            assert result == SendResult(error="The receiver has no valid certificate.")
            assert receiver.messages == []
