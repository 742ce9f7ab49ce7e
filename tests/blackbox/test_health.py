"""`GET /health`, and what the platform asks (docs/http-api.md#health)."""

from pathlib import Path

from steadyhand.testing.service import Service, wait_until


def test_health_needs_no_key_and_has_the_five_fields_and_no_other(service: Service) -> None:
    with service.new_client(None) as anyone:
        answer = anyone.get("/health")
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"status", "busy", "active", "queued", "capacity"}
    assert body["status"] == "ok"
    assert isinstance(body["busy"], bool)


def test_an_idle_service_is_not_busy(service: Service) -> None:
    wait_until(lambda: service.client.get("/health").json()["active"] == 0)
    body = service.client.get("/health").json()
    assert (body["busy"], body["queued"]) == (False, 0)
    assert body["capacity"] == (1 if service.classic else 4)


def test_busy_is_true_exactly_when_a_new_job_would_not_start_at_once(
    default_service: Service, common_dir: Path
) -> None:
    service = default_service
    go = common_dir / "go"
    seen = []
    ids = []
    for _ in range(5):
        body = service.client.get("/health").json()
        seen.append((body["busy"], body["active"] + body["queued"]))
        ids.append(service.submit(f"[[standin: wait_for={go}]]")["id"])
    try:
        assert seen == [(False, 0), (False, 1), (False, 2), (False, 3), (True, 4)]
        wait_until(lambda: service.client.get("/health").json()["active"] == 4)
        assert service.client.get("/health").json()["queued"] == 1
    finally:
        go.touch()
    for job_id in ids:
        assert service.wait_until_ended(job_id)["state"] == "completed"
    wait_until(lambda: not service.client.get("/health").json()["busy"])


def test_the_probes_need_no_key(service: Service) -> None:
    with service.new_client(None) as anyone:
        assert anyone.get("/livez").status_code == 200
        assert anyone.get("/readyz").status_code == 200


def test_every_response_carries_a_request_id_of_its_own(service: Service) -> None:
    paths = ("/health", "/livez", "/v1/jobs", "/nowhere", "/jobs/000000000000", "/v1/models")
    ids = [service.client.get(path).headers["x-request-id"] for path in paths]
    assert len(set(ids)) == len(paths)
    assert all(one.startswith("req_") for one in ids)
