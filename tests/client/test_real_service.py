"""Both clients against a real service: every method, and connections that break where it hurts."""

import dataclasses
import datetime as dt
import inspect
import ipaddress
import json
import pickle
import ssl
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tests.api.api_service import ADMIN, LIMITED, RunningService, running_service, wait_until
from tests.client.client_kinds import MakeClient
from tests.client.cutting_proxy import CuttingProxy

from steadyhand import (
    ENDED_STATES,
    AsyncClient,
    Client,
    Conflict,
    Forbidden,
    InvalidRequest,
    JobNotCompleted,
    NotFound,
    ServiceUnreachable,
    Unauthenticated,
)
from steadyhand.client.decoding import ServiceObject

SECONDS = 30.0


@pytest.fixture
def client(make_client: MakeClient, service: RunningService) -> Iterator[Client]:
    with make_client(service.url, ADMIN) as made:
        yield made


@contextmanager
def when(condition: Callable[[], Any], act: Callable[[], Any]) -> Iterator[None]:
    """Act in another thread once a condition holds, while the block goes on."""

    def wait_and_act() -> None:
        wait_until(condition)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    yield
    thread.join(SECONDS)


def unknown_fields(value: Any, path: str = "") -> list[str]:
    """Return the paths of the fields that the client does not know, in a result and all that it contains."""
    if isinstance(value, tuple):
        return [found for each in value for found in unknown_fields(each, path)]
    if not isinstance(value, ServiceObject):
        return []
    names = [each.name for each in dataclasses.fields(value) if each.name not in ("extra", "document")]
    inner = [found for name in names for found in unknown_fields(getattr(value, name), f"{path}.{name}")]
    return [*(f"{path}.{name}" for name in value.extra), *inner]


def test_a_job_is_run_to_its_end_and_is_whole(client: Client) -> None:
    job = client.run("say hello", workspace="infra", budget_usd=Decimal("1.5"), metadata={"n": 1}, title="T")
    assert job.require_completed() is job
    assert (job.ended, job.answer, job.title, job.prompt) == (True, "hello", "T", "say hello")
    assert (job.budget_usd, job.cost.usd, job.metadata) == (Decimal("1.5"), Decimal("0.0412"), {"n": 1})
    assert job.finished_at is not None
    assert job.created_at is not None
    assert job.finished_at.tzinfo is not None
    assert job.created_at <= job.finished_at
    assert job.outcome is not None
    assert (job.outcome.type, [run.state for run in job.runs]) == ("success", ["completed"])
    assert job.changes is not None
    assert (job.changes.files, job.usage.output_tokens) == (1, 5)
    assert client.diff(job).startswith(b"diff --git")
    assert client.transcript(job.id) == b'{"type":"user"}\n'
    assert client.bundle(job).startswith(b"# v2 git bundle")
    assert client.get(job) == job == client.wait(job)


def test_results_are_frozen_and_can_be_pickled(client: Client) -> None:
    job = client.run("say hello")
    with pytest.raises(dataclasses.FrozenInstanceError):
        job.state = "failed"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(job)) == job  # noqa: S301  # made here
    assert "document" not in repr(job)


def test_the_client_knows_each_field_that_the_service_sends(client: Client) -> None:
    job = client.run("tell", workspace="infra")
    failed = client.run("fail no")
    key = client.create_key("known", agents=["claude"], budget_usd_per_day=1)
    found: tuple[Any, ...] = (
        *(job, failed, key, client.rotate_key(key), client.revoke_key(key)),
        *(*client.events(job), *client.list().data, *client.agents(), *client.workspaces()),
        *(*client.list_keys(), *client.usage(by=["agent"])),
    )
    assert len({type(each) for each in found}) == 8
    assert unknown_fields(found) == []


def test_events_come_as_they_happen_and_end_with_the_job(client: Client) -> None:
    job = client.submit("tell")
    events = list(client.follow(job))
    stored = [event for event in events if event.seq is not None]
    assert [event.seq for event in stored] == list(range(1, len(stored) + 1))
    assert stored[-1].new_state == "completed"
    assert "the whole message" in [event.text for event in events if event.type == "message"]
    assert {event.job_id for event in events} == {job.id}
    assert list(client.events(job)) == stored
    assert [event.seq for event in client.events(job, after=2)] == [event.seq for event in stored[2:]]
    assert list(client.follow(job, after=stored[-1].seq or 0)) == []


def test_following_ends_after_its_time_though_the_job_goes_on(client: Client) -> None:
    job = client.submit("hold")
    assert not {event.new_state for event in client.follow(job, timeout_seconds=0)} & ENDED_STATES
    assert client.wait(job, timeout_seconds=0).ended is False
    assert client.cancel(job).id == job.id
    assert client.wait(job, timeout_seconds=SECONDS).state == "cancelled"


def test_a_follower_that_leaves_closes_its_connection(
    make_client: MakeClient, service: RunningService
) -> None:
    with make_client(service.url, ADMIN) as client:
        job = client.submit("hold")
        with closing(client.follow(job)) as events:
            assert next(events).type == "state.changed"
            assert service.feed.follower_count(job.id) == 1
        wait_until(lambda: service.feed.follower_count(job.id) == 0)
        client.cancel(job)
        client.wait(job, timeout_seconds=SECONDS)


def test_a_job_without_an_answer_raises_an_error_with_its_code(client: Client) -> None:
    job = client.run("fail it broke")
    with pytest.raises(JobNotCompleted) as caught:
        job.require_completed()
    assert (caught.value.code, caught.value.job_id, caught.value.state) == ("agent_error", job.id, "failed")
    waiting = client.submit("hold")
    with pytest.raises(JobNotCompleted) as caught:
        waiting.require_completed()
    assert caught.value.code == "not_ready"
    client.cancel(waiting)
    client.wait(waiting, timeout_seconds=SECONDS)


def test_a_job_runs_again_once_for_each_run_that_is_known(client: Client) -> None:
    first = client.run("fail it broke")
    assert client.retry(first).id == first.id
    second = client.wait(first, timeout_seconds=SECONDS)
    assert second.run == 2
    assert client.retry(first).run == 2  # the same request as before
    third = client.wait(client.retry(second), timeout_seconds=SECONDS)
    assert third.run == 3
    resumed = client.resume(third.id, prompt="say now", budget_usd=9)
    assert (client.wait(resumed, timeout_seconds=SECONDS).run, resumed.budget_usd) == (4, Decimal(9))
    assert client.resume(third.id, after_run=3).run == 4
    running = client.submit("hold")
    with pytest.raises(Conflict):
        client.retry(running.id)
    client.cancel(running)
    client.wait(running, timeout_seconds=SECONDS)


def test_jobs_of_a_filter_are_cancelled_retried_and_resumed(client: Client) -> None:
    batch = {"batch": uuid.uuid4().hex}
    held = {client.submit("hold", metadata=batch).id for _ in range(3)}
    planned = client.cancel_jobs(metadata=batch, dry_run=True)
    assert (planned.dry_run, planned.matched, planned.changed, planned.failed) == (True, 3, 3, 0)
    first = client.cancel_jobs(metadata=batch, as_of=planned.as_of, limit=2)
    assert (len(first.data), first.has_more, first.stopped) == (2, True, None)
    rest = client.cancel_jobs(metadata=batch, as_of=first.as_of, cursor=first.next_cursor)
    assert {each.id for each in (*first.data, *rest.data)} == held
    assert {client.wait(job_id, timeout_seconds=SECONDS).state for job_id in held} == {"cancelled"}
    assert client.cancel_jobs(metadata=batch, created_after=first.as_of).matched == 0
    broken = client.run("fail it broke", metadata=batch)
    (again,) = client.retry_jobs(metadata=batch, state="failed").data
    assert (again.id, again.run, again.error) == (broken.id, 1, None)
    assert client.wait(broken, timeout_seconds=SECONDS).run == 2
    (resumed,) = client.resume_jobs(metadata=batch, state=["failed"], prompt="say done", budget_usd=3).data
    assert (resumed.id, resumed.error) == (broken.id, None)
    ended = client.wait(broken, timeout_seconds=SECONDS)
    assert (ended.run, ended.budget_usd) == (3, Decimal(3))
    refused = client.resume_jobs(metadata=batch, state="cancelled", dry_run=True)
    assert (refused.matched, refused.failed) == (3, len([each for each in refused.data if each.error]))
    never_ran = next(each for each in refused.data if each.run == 0)
    assert never_ran.error is not None
    assert (never_ran.state, never_ran.error.code) == ("cancelled", "invalid_state")
    with pytest.raises(InvalidRequest):
        client.cancel_jobs()
    assert unknown_fields((planned, first, rest, resumed, refused)) == []
    with pytest.raises(dataclasses.FrozenInstanceError):
        first.changed = 0  # type: ignore[misc]


def test_a_forecast_and_the_calls_of_tools_are_typed(client: Client) -> None:
    jobs = [client.run("tell") for _ in range(5)]
    forecast = client.forecast(agent=jobs[0].agent, days=1)
    assert (forecast.agent, forecast.days) == (jobs[0].agent, 1)
    assert forecast.jobs >= forecast.least_jobs == 5
    assert forecast.cost is not None
    assert forecast.duration is not None
    assert forecast.cost.p50_usd <= forecast.cost.p90_usd
    assert 0 <= forecast.duration.p50_seconds <= forecast.duration.p90_seconds
    assert forecast.since is not None
    nobody = client.forecast(workspace="infra", model="no-such-model")
    assert (nobody.cost, nobody.duration) == (None, None)
    calls = client.tools(by=["job"], job=jobs[0].id)
    assert calls.jobs == 1
    assert {row.job_id for row in calls.data} <= {jobs[0].id}
    assert unknown_fields((forecast, nobody, calls)) == []


def test_a_turn_goes_on_in_the_session_of_a_job(client: Client) -> None:
    job = client.run("say one")
    turn = client.wait(client.turn(job, "say two", title="Second"), timeout_seconds=SECONDS)
    assert (turn.parent_job_id, turn.session_id is not None, turn.answer, turn.title) == (
        job.id,
        True,
        "two",
        "Second",
    )


def test_jobs_are_listed_page_by_page_and_all_of_them_by_an_iterator(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.client.sans_io._JOBS_OF_A_PAGE", 2)
    five = type(client).__name__
    made = [client.run("say it", metadata={"set": five}).id for _ in range(5)]
    page = client.list(limit=2, metadata={"set": five})
    assert ([job.id for job in page.data], page.has_more) == (made[:2:-1], True)
    rest = client.list(limit=200, cursor=page.next_cursor, metadata={"set": five})
    assert ([job.id for job in rest.data], rest.has_more) == (made[2::-1], False)
    assert [job.id for job in client.jobs(state=["completed"], metadata={"set": five})] == made[::-1]
    client.delete(made[0])
    assert [job.id for job in client.jobs(metadata={"set": five})] == made[:0:-1]
    with pytest.raises(NotFound):
        client.get(made[0])


def test_keys_are_made_rotated_and_revoked_and_no_secret_is_shown_by_accident(
    client: Client, make_client: MakeClient, service: RunningService
) -> None:
    key = client.create_key("nightly", scopes=["submit", "read"], running_jobs=2)
    assert (key.scopes, key.limits.running_jobs, key.limits.agents) == (("submit", "read"), 2, None)
    assert key.secret not in repr(key)
    with make_client(service.url, key.secret) as other:
        assert other.run("say mine").answer == "mine"
    rotated = client.rotate_key(key, grace_seconds=60)
    assert (rotated.secret != key.secret, rotated.former_secret_until is not None) == (True, True)
    with pytest.raises(InvalidRequest) as caught:
        client.create_key("nightly", strict=True)
    assert caught.value.code == "key_exists"
    assert client.revoke_key(rotated).revoked_at is not None
    assert client.revoke_key(key.id).revoked_at is not None
    with make_client(service.url, rotated.secret) as other, pytest.raises(Unauthenticated) as refused:
        other.agents()
    assert (refused.value.status, (refused.value.request_id or "")[:4]) == (401, "req_")
    assert [row.id for row in client.list_keys()].count(key.id) == 1


def test_the_deliveries_of_callbacks_are_listed_shown_and_replayed(
    client: Client, make_client: MakeClient, service: RunningService
) -> None:
    url = "https://receiver.example/hook?secret"
    job = client.run("say it", callback_url=url, callback_events=["job.ended", "job.parked"])
    assert job.callback is not None
    assert (job.callback.receiver, job.callback.events) == (
        "https://receiver.example",
        ("job.ended", "job.parked"),
    )
    page = client.deliveries(job=job.id, state="pending", limit=1)
    (listed,) = page.data
    assert (listed.job_id, listed.type, listed.receiver, listed.body) == (
        job.id,
        "job.ended",
        "https://receiver.example",
        None,
    )
    shown = client.delivery(listed.id)
    assert shown.body is not None
    assert json.loads(shown.body)["data"]["id"] == job.id
    assert client.deliveries(job=job.id, state="delivered").data == ()
    secret = client.callback_secret()
    assert secret.secret.startswith("whsec_")
    assert secret.secret not in repr(secret)
    assert unknown_fields((job, shown, secret)) == []
    with make_client(service.url, LIMITED) as other, pytest.raises(NotFound):
        other.delivery(listed.id)
    with (
        CuttingProxy(service.url, b"/replay ") as proxy,
        make_client(proxy.url, ADMIN) as cut,
        pytest.raises(ServiceUnreachable),
    ):
        cut.replay_delivery(listed.id)
    assert (proxy.cuts, len(proxy.requests)) == (1, 1)
    assert client.replay_delivery(listed.id).state == "pending"


def test_endpoints_are_made_changed_and_removed(
    client: Client, make_client: MakeClient, service: RunningService
) -> None:
    name = f"n8n-{make_client.__name__}"
    made = client.create_endpoint(name, url="https://n8n.example/hook?secret", agents=["claude"])
    assert made.secret is not None
    assert made.secret not in repr(made)
    assert (made.receiver, made.events, made.agents) == ("https://n8n.example", ("job.ended",), ("claude",))
    changed = client.change_endpoint(name, events=["job.parked"], agents=[])
    assert (changed.secret, changed.events, changed.agents) == (None, ("job.parked",), ())
    rotated = client.change_endpoint(name, rotate_secret=True)
    assert rotated.secret not in (None, made.secret)
    assert [each.name for each in client.list_endpoints()].count(name) == 1
    assert unknown_fields((made, changed, rotated)) == []
    with pytest.raises(Conflict):
        client.create_endpoint(name, url="https://n8n.example/")
    with make_client(service.url, LIMITED) as other, pytest.raises(Forbidden):
        other.list_endpoints()
    client.remove_endpoint(name)
    for wrong in (name, "../secret", ""):
        with pytest.raises(NotFound):
            client.remove_endpoint(wrong)


def test_a_submission_whose_answer_is_lost_runs_once(
    make_client: MakeClient, service: RunningService
) -> None:
    before, earlier_runs = service.count(), len(service.runner.specs)
    with (
        CuttingProxy(service.url, b"POST /v1/jobs ", times=2) as proxy,
        make_client(proxy.url, ADMIN) as client,
    ):
        job = client.run("say once")
        assert (job.answer, job.run) == ("once", 1)
        assert (proxy.cuts, len(proxy.requests)) == (2, 3)
        turn = client.turn(job, "say twice")
        assert client.wait(turn, timeout_seconds=SECONDS).answer == "twice"
    assert service.count() == before + 2
    assert [spec.spec.prompt for spec in service.runner.specs[earlier_runs:]] == ["say once", "say twice"]


def test_a_retry_whose_answer_is_lost_runs_once(make_client: MakeClient, service: RunningService) -> None:
    for name, is_known in (("retry", True), ("resume", False)):
        with (
            CuttingProxy(service.url, f"/{name} ".encode()) as proxy,
            make_client(proxy.url, ADMIN) as client,
        ):
            job = client.run("fail it broke")
            getattr(client, name)(job if is_known else job.id)
            assert client.wait(job, timeout_seconds=SECONDS).run == 2
            assert (proxy.cuts, len(proxy.requests)) == (1, 2)


def test_a_cancel_and_a_deletion_whose_answers_are_lost_succeed(
    make_client: MakeClient, service: RunningService
) -> None:
    with CuttingProxy(service.url, b"/cancel ") as proxy, make_client(proxy.url, ADMIN) as client:
        job = client.submit("hold")
        client.cancel(job)
        assert client.wait(job, timeout_seconds=SECONDS).state == "cancelled"
        assert proxy.cuts == 1
    with CuttingProxy(service.url, b"DELETE /v1/jobs/") as proxy, make_client(proxy.url, ADMIN) as client:
        client.delete(job)
        assert (proxy.cuts, len(proxy.requests)) == (1, 2)
        with pytest.raises(NotFound):
            client.get(job)


def test_a_key_is_made_once_even_if_its_answer_is_lost(
    make_client: MakeClient, service: RunningService
) -> None:
    name = f"lost-{make_client.__name__}"
    with CuttingProxy(service.url, b"POST /v1/keys ") as proxy, make_client(proxy.url, ADMIN) as client:
        with pytest.raises(ServiceUnreachable):
            client.create_key(name)
        assert [key.name for key in client.list_keys()].count(name) == 1


def test_a_stream_that_is_cut_in_the_middle_is_whole(
    make_client: MakeClient, service: RunningService
) -> None:
    with make_client(service.url, ADMIN) as direct:
        job = direct.run("tell")
        stored = list(direct.events(job))
    parts = (b"id: 2\n", b'"seq":2', b'"type"', b"id: 3\nevent")
    for part in parts:
        with (
            CuttingProxy(service.url, b"/events ", part, times=2) as proxy,
            make_client(proxy.url, ADMIN) as client,
        ):
            assert list(client.follow(job)) == stored
            assert (proxy.cuts, len(proxy.requests)) == (2, 3)
    assert b"last-event-id: 2" in proxy.requests[1].lower()


def test_a_running_job_is_followed_across_a_cut(make_client: MakeClient, service: RunningService) -> None:
    release = service.hold_play()
    with (
        CuttingProxy(service.url, b"/events ", b'"to":"running"') as proxy,
        make_client(proxy.url, ADMIN) as client,
    ):
        seen = []
        for event in client.follow(client.submit("play done")):
            seen.append(event.seq)
            if proxy.cuts and event.new_state == "running":
                release()
        assert proxy.cuts == 1
    assert seen == list(range(1, len(seen) + 1))


def test_waiting_goes_on_when_its_connection_is_cut(make_client: MakeClient, service: RunningService) -> None:
    release = service.hold_play()
    with make_client(service.url, ADMIN) as direct:
        job = direct.submit("play done")
    with CuttingProxy(service.url, b"prefer: wait") as proxy, make_client(proxy.url, ADMIN) as client:
        with when(lambda: proxy.requests, release):
            assert client.wait(job, timeout_seconds=SECONDS).answer == "done"
        assert len(proxy.requests) == 2


def test_many_retries_at_once_start_one_run(service: RunningService) -> None:
    with Client(service.url, ADMIN) as client:
        job = client.run("fail it broke")

    def retry(_: int) -> int:
        with Client(service.url, ADMIN) as own:
            return own.retry(job).run

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(retry, range(5)))
    with Client(service.url, ADMIN) as client:
        assert client.wait(job, timeout_seconds=SECONDS).run == 2


def test_a_full_queue_is_waited_for(make_client: MakeClient, tmp_path: Path) -> None:
    with (
        running_service(tmp_path, capacity=1, max_queued=1) as service,
        CuttingProxy(service.url, b"POST ", b"queue_full", times=0) as proxy,
        make_client(proxy.url, ADMIN) as client,
        Client(service.url, LIMITED) as other,
    ):
        other.run("say quick")  # the service estimates the time to wait from what it has seen
        release = service.hold_play()
        held = [other.submit("play done"), other.submit("play done")]
        with when(lambda: proxy.found, release):
            assert client.run("say late").answer == "late"
        assert [other.wait(job, timeout_seconds=SECONDS).answer for job in held] == ["done"] * 2


@contextmanager
def tls_service(service: RunningService, folder: Path) -> Iterator[tuple[str, ssl.SSLContext]]:
    """Terminate TLS before the service; yield the address and a context that trusts its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "service.pem"
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = certificate.public_bytes(serialization.Encoding.PEM)
    pem.write_bytes(private + public)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    with CuttingProxy(service.url, b"\0", tls=context) as proxy:
        yield proxy.url, ssl.create_default_context(cadata=public.decode())


def test_a_service_behind_tls_is_verified(
    make_client: MakeClient, service: RunningService, tmp_path: Path
) -> None:
    with tls_service(service, tmp_path) as (url, trusted):
        assert url.startswith("https://127.0.0.1:")
        with make_client(url, ADMIN, verify=trusted) as client:
            job = client.submit("tell")
            assert [event.new_state for event in client.follow(job)][-1] == "completed"
        with make_client(url, ADMIN) as stranger, pytest.raises(ServiceUnreachable) as caught:
            stranger.agents()
    assert caught.value.__cause__ is not None


def test_the_environment_names_the_service(service: RunningService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEADYHAND_URL", f"{service.url}/")
    monkeypatch.setenv("STEADYHAND_TOKEN", ADMIN)
    with Client.from_environment() as client:
        assert (client.base_url, client.is_local) == (service.url, True)
        assert client.agents()
    monkeypatch.delenv("STEADYHAND_URL")
    monkeypatch.setenv("STEADYHAND_TOKEN", "")
    with Client.from_environment() as client:
        assert client.base_url == "http://127.0.0.1:8080"


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    def surface(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(member).parameters)
            for name, member in inspect.getmembers(kind, callable)
            if not name.startswith("_")
        }

    assert surface(Client) == surface(AsyncClient)
    for kind in (Client, AsyncClient):
        assert all(inspect.getdoc(getattr(kind, name)) for name in surface(kind))
