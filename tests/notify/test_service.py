"""Notifications of a real service with real apprise, to receivers on loopback; and wrong settings."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tests.blackbox.test_metrics import parse
from tests.callbacks.receiver import Receiver, Reply, receiving

from steadyhand.config.secret_values import read_secrets
from steadyhand.config.settings import Settings, load_settings
from steadyhand.errors import ConfigError
from steadyhand.metrics.names import CALLBACK_RESULTS
from steadyhand.serve import notify_setup
from steadyhand.testing.service import MakeService, Service, wait_until

CONFIG = """\
[service]
paused = true
[server]
public_url = "https://steady.example"
[callbacks]
allow = ["127.0.0.1:@GOOD@", "127.0.0.1:@BAD@"]
"""
NOTIFIERS = """\
[notify.phone]
url_file = "@FILE@"
outcomes = ["cancelled"]
[notify.other]
url = "ntfy://127.0.0.1:@GOOD@/another-topic-1234567"
agents = ["chat"]
[notify.broken]
url = "ntfy://127.0.0.1:@BAD@/broken"
"""


def configure(service: Service, folder: Path, good: Receiver, bad: Receiver, *, notifiers: bool) -> None:
    file = folder / "phone.url"
    file.write_text(f"ntfy://127.0.0.1:{good.port}/a-topic-that-is-secret\n")
    text = CONFIG + (NOTIFIERS if notifiers else "")
    values = {"@GOOD@": str(good.port), "@BAD@": str(bad.port), "@FILE@": str(file)}
    for name, value in values.items():
        text = text.replace(name, value)
    service.config_path.write_text(text)


def deliveries(service: Service, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = service.client.get("/v1/callbacks/deliveries", params=query).json()["data"]
    return found


def end_job(service: Service, **fields: Any) -> str:
    job_id = str(service.submit("x", **fields)["id"])
    assert service.client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    return job_id


def test_people_are_told_and_a_notifier_that_fails_holds_up_nothing(
    make_service: MakeService, tmp_path: Path
) -> None:
    with receiving() as good, receiving() as bad:
        bad.reply = lambda _number, _message: Reply(500)
        service = make_service()
        configure(service, tmp_path, good, bad, notifiers=True)
        service.start()
        job_id = end_job(service, title="Fix it", callback_url=f"{good.url}/hook")
        # Notifications and other callbacks have a task each.
        wait_until(lambda: len(deliveries(service, state="delivered")) == 2, 60)
        wait_until(
            lambda: any(each["attempts"] for each in deliveries(service, endpoint="notify:broken")), 60
        )
        assert deliveries(service, endpoint="notify:other") == []
        paths = sorted(message.path for message in good.messages)
        assert paths == ["/", "/hook"]
        (told,) = [json.loads(message.body) for message in good.messages if message.path == "/"]
        assert told["title"] == "Job cancelled: Fix it"
        assert told["message"].endswith(f"\nhttps://steady.example/ui/jobs/{job_id}")
        (broken,) = deliveries(service, endpoint="notify:broken")
        assert (broken["state"], broken["status"], broken["receiver"]) == ("pending", 500, None)

        def are_counted() -> bool:
            (delivery,) = deliveries(service, endpoint="notify:broken")
            figures = parse(service.client.get("/metrics").text)
            counts = {
                result: figures["steadyhand_notifications_total", result] for result in CALLBACK_RESULTS
            }
            expected = {"delivered": 1, "postponed": delivery["attempts"], "failed": 0, "cancelled": 0}
            return counts == expected and figures["steadyhand_callbacks_total", "delivered"] == 1

        wait_until(are_counted)  # another attempt may come between the two looks
        service.kill()
        configure(service, tmp_path, good, bad, notifiers=False)
        service.restart()
        wait_until(lambda: deliveries(service, endpoint="notify:broken", state="cancelled"), 30)
        end_job(service)
        service.terminate()
        assert len(bad.messages) >= 1
        assert len(good.messages) == 2
        assert "a-topic-that-is-secret" not in service.log
        assert "another-topic" not in service.log


def settings(tmp_path: Path, text: str) -> Settings:
    path = tmp_path / "steadyhand.toml"
    path.write_text(text)
    return load_settings(path, environ={"STEADYHAND_DATA_DIR": str(tmp_path / "data")})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[notify.a]\nevents = ["job.ended"]', "notify.a: needs either url or url_file"),
        ('[notify.a]\nurl = "ntfy://x/y"\nurl_file = "/x"', "notify.a: needs either url or url_file"),
        ('[notify.a]\nurl_file = "/nonexistent/x"', "notify.a.url_file: /nonexistent/x could not be read"),
        ('[notify.a]\nurl = "exec://x"', "notify.a.url: its scheme is none of"),
        ('[notify.a]\nurl = "ntfy://x/y"\noutcomes = ["budgets"]', "did you mean 'budget'?"),
        ('[notify.a]\nurl = "ntfy://x/y"\nquiet_hours = "22"', "notify.a.quiet_hours"),
        (
            '[notify.a]\nurl = "ntfy://x/y"\nquiet_hours = "22:00-07:00"\ntimezone = "Mars"',
            "notify.a.timezone",
        ),
    ],
)
def test_a_wrong_notifier_stops_the_start(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        notify_setup.load_notifiers(settings(tmp_path, text))
    assert says in caught.value.detail


def test_without_apprise_the_start_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    some: Any = None
    with pytest.raises(ConfigError, match=r"install steadyhand\[notify\]"):
        notify_setup.create_notifications(
            settings(tmp_path, '[notify.a]\nurl = "ntfy://x/y"'), some, some, some, some
        )


def test_tokens_of_an_address_are_secrets_and_the_settings_show_its_scheme_alone(tmp_path: Path) -> None:
    loaded = settings(tmp_path, '[notify.a]\nurl = "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"')
    (secret,) = [each for each in read_secrets(loaded) if each.name == "notify.a.url"]
    assert b"TIiajkdnlazkcOXrIdevi7FQ" in secret.parts
    assert b"T1JJ3T3L2" not in secret.parts
    rows = {row.name: row.value for row in loaded.rows()}
    assert rows["notify.a.url"] == "slack://(set)"
