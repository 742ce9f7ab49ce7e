"""Schedules of real services: the routes, the configuration, and every-second ticks through kills."""

import json

import pytest
from tests.callbacks.receiver import receiving
from tests.schedules.service_schedules import PATH, check_every_second_through_kills, create, history

from steadyhand.testing.service import MakeService, Service, wait_until

CONFIG = """
[service]
concurrency = 8
max_queued = 1000

[schedules.configured]
cron = "0 0 1 1 *"
timezone = "Europe/Berlin"
agent = "claude"
prompt = "Look. {{ tick.date }}"
metadata = { team = "shop" }
max_usd = 5
"""


def test_a_schedule_lives_from_its_creation_to_its_removal(make_service: MakeService) -> None:
    service = make_service(config=CONFIG).start()
    client = service.client
    made = create(service, "hourly", "@hourly", job={"title": "At {{ tick.time }}", "metadata": {"a": 1}})
    assert (made["paused"], made["runs"], made["last"]) == (None, 0, None)
    assert made["job"]["metadata"] == {"a": 1}
    assert made["next_at"].endswith(":00:00.000000Z")
    listed = client.get(PATH).json()["data"]
    assert [(each["name"], each["origin"]) for each in listed] == [
        ("configured", "config"),
        ("hourly", "api"),
    ]
    assert listed[0]["job"]["metadata"] == {"team": "shop"}
    assert listed[0]["next_at"].endswith("-12-31T23:00:00.000000Z")

    ran = client.post(f"{PATH}/hourly/run")
    assert ran.status_code == 202
    job = service.wait_until_ended(ran.json()["id"])
    assert (job["state"], job["origin"]) == ("completed", "schedule")
    assert job["title"].startswith("At 20")
    wait_until(lambda: client.get(f"{PATH}/hourly").json()["last"]["outcome"] == "success")
    (tick,) = history(service, "hourly")
    assert (tick["kind"], tick["result"], tick["job_id"]) == ("manual", "fired", job["id"])

    changed = client.patch(
        f"{PATH}/hourly", json={"cron": "0 4 * * *", "timezone": "Asia/Kolkata", "max_runs": 1}
    )
    assert changed.json()["next_at"].endswith("T22:30:00.000000Z")
    assert client.post(f"{PATH}/hourly/run").json()["code"] == "cap_reached"
    assert client.patch(f"{PATH}/hourly", json={"max_runs": None}).json()["max_runs"] is None
    paused = client.post(f"{PATH}/hourly/pause").json()
    assert (paused["paused"]["reason"], paused["next_at"]) == ("request", None)
    assert client.post(f"{PATH}/hourly/resume", json={}).json()["paused"] is None
    assert client.post(f"{PATH}/configured/pause").json()["paused"]["reason"] == "request"
    for answer in (
        client.patch(f"{PATH}/configured", json={"cron": "* * * * *"}),
        client.delete(f"{PATH}/configured"),
    ):
        assert (answer.status_code, answer.json()["code"]) == (409, "invalid_state")
    service.kill()
    service.restart()
    assert (
        service.client.get(f"{PATH}/configured").json()["paused"] is not None
    )  # a pause outlives the service
    assert service.client.get(f"{PATH}/hourly").json()["runs"] == 1
    assert service.client.delete(f"{PATH}/hourly").status_code == 204
    assert service.client.get(f"{PATH}/hourly").status_code == 404
    assert service.get_job(job["id"])["state"] == "completed"
    metrics = service.client.get("/metrics").text
    assert "steadyhand_schedule_ticks_total" in metrics


def test_a_key_manages_its_own_schedules_and_a_revoked_one_pauses_them(make_service: MakeService) -> None:
    with receiving() as receiver:
        service = make_service(config=f'[callbacks]\nallow = ["127.0.0.1:{receiver.port}"]\n').start()
        hook = {"name": "hook", "url": receiver.url, "events": ["schedule.paused"]}
        assert service.client.post("/v1/callbacks/endpoints", json=hook).status_code == 201
        manage_by_keys(service)
        wait_until(lambda: receiver.messages)
        (message,) = [json.loads(each.body) for each in receiver.messages]
    assert message["type"] == "schedule.paused"
    assert (message["data"]["schedule"], message["data"]["reason"]) == ("theirs", "key_revoked")
    (delivery,) = service.client.get("/v1/callbacks/deliveries").json()["data"]
    assert (delivery["schedule"], delivery["job_id"]) == ("theirs", None)


def manage_by_keys(service: Service) -> None:
    """Make keys and their schedules, and revoke the key of one."""
    made = service.client.post("/v1/keys", json={"name": "night"}).json()
    reader = service.client.post("/v1/keys", json={"name": "reader", "scopes": ["read"]}).json()
    create(service, "mine", "@daily")
    with service.new_client(made["secret"]) as owner, service.new_client(reader["secret"]) as other:
        body = {"name": "theirs", "cron": "* * * * * *", "job": {"prompt": "Hello."}, "paused": True}
        assert owner.post(PATH, json=body).json()["api_key_id"] == made["id"]
        assert owner.post(PATH, json=body).status_code == 409
        assert [each["name"] for each in owner.get(PATH).json()["data"]] == ["theirs"]
        assert owner.get(f"{PATH}/mine").status_code == owner.post(f"{PATH}/mine/run").status_code == 404
        assert other.get(PATH).json()["data"] == []
        assert other.post(PATH, json=body).json()["code"] == "scope_missing"
        for wrong, field in (
            ({"cron": "x"}, "/cron"),
            ({"timezone": "Mars"}, "/timezone"),
            ({"job": {"prompt": "{{ tick.x }}"}}, "/job/prompt"),
            ({"job": {"prompt": "x", "session": "y"}}, "/job/session"),
            ({"max_usd": 0}, "/max_usd"),
        ):
            answer = owner.post(PATH, json={**body, "name": "w", **wrong})
            assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, field), answer.text
        assert owner.post(f"{PATH}/theirs/resume").status_code == 200
        service.client.delete(f"/v1/keys/{made['id']}")
    paused = wait_until(lambda: service.client.get(f"{PATH}/theirs").json()["paused"])
    assert paused["reason"] == "key_revoked"
    assert "schedule.paused" in service.log


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('cron = "61 * * * *"', "schedules.bad.cron: is not a cron expression: bad minute"),
        ('cron = "@daily"\ntimezone = "Mars"', "schedules.bad.timezone: is not the name of a time zone"),
        ('cron = "@daily"\nkey = "nobody"', "schedules.bad.key: there is no valid key 'nobody'"),
    ],
)
def test_a_wrong_schedule_of_the_configuration_stops_the_start_with_its_name(
    make_service: MakeService, line: str, told: str
) -> None:
    service = make_service(config=f'[schedules.bad]\nprompt = "Look."\n{line}\n')
    with pytest.raises(RuntimeError, match="schedules"):
        service.start()
    assert told in service.log


@pytest.mark.parametrize("seconds", [15, pytest.param(45, marks=pytest.mark.long)])
def test_each_of_many_every_second_ticks_fires_once_through_kills_of_the_service(
    make_service: MakeService, seconds: int
) -> None:
    service = make_service(config="[service]\nconcurrency = 4\nmax_queued = 1000\n").start()
    check_every_second_through_kills([service], seconds)
