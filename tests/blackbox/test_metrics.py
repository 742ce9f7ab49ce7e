"""`/metrics` of a real service: what a job leaves in it, who may read it, and that it answers during an outage."""

import json
import re
from collections.abc import Iterator, Mapping

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.blackbox.test_keys import made
from tests.blackbox.test_store_outage import lock_of
from tests.callbacks.receiver import Receiver, receiving

from steadyhand.metrics.names import METRICS, PROCESS_METRICS
from steadyhand.testing.cli import cli_path
from steadyhand.testing.model import ScriptedModel
from steadyhand.testing.service import PLAIN_HTTP, MakeService, Service, wait_until

CONFIG = """\
[service]
metrics_bind = "127.0.0.1:0"

[callbacks]
allow = ["127.0.0.1:@PORT@"]

[agents.chat]
warm = 1
"""
NOT_ON_THE_PATH = {
    "steadyhand_gateway_errors_total",
    "steadyhand_gateway_rate_limits_total",
    "steadyhand_gateway_refused_total",
    "steadyhand_model_unpriced_calls_total",
    "steadyhand_provider_blocked",
    "steadyhand_provider_rejected",
    "steadyhand_node_drained",
    "steadyhand_runs_suspended",
    "steadyhand_store_failures_total",
    "steadyhand_callbacks_circuits_open",
    "steadyhand_notifications_circuits_open",
    "steadyhand_notifications_in_flight",
    "steadyhand_notifications_total",
    "steadyhand_notifications_waiting",
    "steadyhand_schedule_pauses_total",
    "steadyhand_schedule_ticks_total",
    "steadyhand_store_outage",
    "steadyhand_warm_failures_total",
}
"""What a service without any trouble has as 0, or not at all; other tests see to these."""
OF_THIS_MOMENT = {
    "steadyhand_callbacks_in_flight",
    "steadyhand_callbacks_waiting",
    "steadyhand_followers",
    "steadyhand_jobs",
    "steadyhand_model_calls_open",
    "steadyhand_queue_oldest_seconds",
    "steadyhand_slots_used",
    "steadyhand_warm_waiting",
}
"""What is 0 again once nothing runs."""

Samples = Mapping[tuple[str, ...], float]


def parse(text: str) -> Samples:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(service: Service) -> Samples:
    answer = service.client.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return parse(answer.text)


def is_counted(found: Samples, name: str) -> bool:
    """Return True if a metric has a sample that is not 0; of a histogram, a value."""
    wanted = f"{name}_count" if name in METRICS and METRICS[name].type == "histogram" else name
    return any(value for (sample, *_), value in found.items() if sample == wanted)


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as started:
        yield started


@pytest.fixture(scope="module")
def service(make_service_in: MakeService, model: ScriptedModel, receiver: Receiver) -> Iterator[Service]:
    """A service with the real CLI whose metrics have an address of their own, too."""
    config = CONFIG.replace("@PORT@", str(receiver.port))
    with make_service_in(claude=cli_path(), model=model.url, config=config) as started:
        yield started


@pytest.fixture(scope="module")
def metrics_url(service: Service) -> str:
    (line,) = [each for each in service.log.splitlines() if "metrics.listening" in each]
    return str(json.loads(line)["url"])


def get(url: str, **headers: str) -> httpx2.Response:
    return httpx2.get(url, headers=headers, timeout=10, trust_env=False, verify=PLAIN_HTTP)


def test_every_metric_of_the_path_of_a_job_counts_it(
    service: Service, metrics_url: str, receiver: Receiver
) -> None:
    wait_until(lambda: parse(get(metrics_url).text).get(("steadyhand_warm_waiting",)), 60)
    before = scrape(service)
    repository = str(service.root / "workspace")
    job_id = service.submit("Say ok.", workspace=repository)["id"]
    following = {"accept": "text/event-stream"}
    with service.client.stream("GET", f"/v1/jobs/{job_id}/events", headers=following) as events:
        moments = [parse(get(metrics_url).text) for line in events.iter_lines() if line.startswith("id: ")]
    assert service.get_job(job_id)["state"] == "completed"
    hook = f"{receiver.url}/hook"
    assert service.run_job("Say ok.", agent="chat", callback_url=hook)["state"] == "completed"
    delivered = ("steadyhand_callbacks_total", "delivered")
    found = wait_until(lambda: each if (each := scrape(service)).get(delivered) else None)
    assert len(receiver.messages) == 1
    expected = {*METRICS, *PROCESS_METRICS} - NOT_ON_THE_PATH - OF_THIS_MOMENT
    assert [name for name in sorted(expected) if not is_counted(found, name)] == []
    for name in ("steadyhand_followers", "steadyhand_slots_used"):
        assert any(is_counted(moment, name) for moment in moments), name
    assert any(moment["steadyhand_jobs", "running"] for moment in moments)
    troubles = [key for key in found if key[0] in NOT_ON_THE_PATH]
    assert [key for key in troubles if found[key] != before.get(key, 0)] == []
    # The same figures are in the ledger and in the job.
    usage = service.client.get("/v1/usage").json()["data"][0]
    cost = sum(value for (name, *_), value in found.items() if name == "steadyhand_model_cost_dollars_total")
    assert cost == pytest.approx(float(usage["cost"]["usd"]), abs=1e-6)
    calls = sum(value for (name, *_), value in found.items() if name == "steadyhand_model_calls_total")
    assert calls == usage["calls"]
    ended = {key[1:] for key, value in found.items() if key[0] == "steadyhand_jobs_ended_total" and value}
    assert ended >= {("claude", "success"), ("chat", "success")}
    phases = {key[1] for key, value in found.items() if key[0] == "steadyhand_phase_seconds_count" and value}
    assert {"checking_out", "starting", "running", "harvesting"} <= phases


def test_an_agent_that_only_a_repository_defines_is_another_one(service: Service) -> None:
    repository = str(service.root / "workspace")
    before = scrape(service)
    job = service.run_job("Say ok.", agent="issue-responder", workspace=repository)
    assert job["state"] == "completed", job
    answer = service.client.get("/metrics")
    found = parse(answer.text)
    for name in (("steadyhand_jobs_accepted_total",), ("steadyhand_model_calls_total", "ok")):
        key = (name[0], "other", *name[1:])
        assert found[key] == before[key] + 1
    for secret in ("issue-responder", "k_admin", repository, job["id"]):
        assert secret not in answer.text


def test_the_port_of_the_service_asks_for_a_key_with_a_scope(service: Service) -> None:
    with service.new_client(None) as nobody:
        assert nobody.get("/metrics").status_code == 401
    with service.new_client(made(service, name="submits", scopes=["submit"])["secret"]) as submitter:
        refused = submitter.get("/metrics")
        assert (refused.status_code, refused.json()["code"]) == (403, "scope_missing")
    with service.new_client(made(service, name="reads", scopes=["read"])["secret"]) as reader:
        own = reader.get("/metrics").text
    with service.new_client(made(service, name="all", scopes=["read", "read:all"])["secret"]) as everyone:
        all_of_it = parse(everyone.get("/metrics").text)
    by_agent = {name for name, spec in METRICS.items() if spec.scope == "read:all"}
    assert "agent=" not in own
    assert not [name for name in by_agent if name in own]
    assert {name for name, *_ in all_of_it} >= {name for name in by_agent if name.endswith("_total")}
    assert {("steadyhand_slots",), ("steadyhand_store_outage",)} <= parse(own).keys()


def test_the_address_of_their_own_serves_the_metrics_alone_and_to_loopback(
    service: Service, metrics_url: str
) -> None:
    assert is_counted(parse(get(metrics_url).text), "steadyhand_slots")
    assert get(metrics_url, host="localhost:9464").status_code == 200
    assert get(metrics_url, host="[::1]").status_code == 200
    for host in ("example.org", "127.0.0.1.example.org", "", "["):
        assert get(metrics_url, host=host).status_code == 403, host
    base = metrics_url.removesuffix("/metrics")
    assert get(f"{base}/v1/jobs").status_code == 404
    assert httpx2.post(metrics_url, timeout=10, trust_env=False, verify=PLAIN_HTTP).status_code == 405
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", metrics_url)
    assert base != service.url


def test_a_scrape_during_an_outage_of_the_store_answers_and_says_so(
    service: Service, metrics_url: str
) -> None:
    assert scrape(service)["steadyhand_store_outage",] == 0
    with lock_of(service):
        refused = service.client.post("/v1/jobs", json={"prompt": "x", "workspace": "scratch"})
        assert refused.status_code == 503
        for found in (scrape(service), parse(get(metrics_url).text)):
            assert found["steadyhand_store_outage",] == 1
            assert found["steadyhand_store_failures_total",] >= 1
            assert found["steadyhand_http_requests_total", "native", "5xx"] >= 1
    wait_until(lambda: scrape(service)["steadyhand_store_outage",] == 0)
