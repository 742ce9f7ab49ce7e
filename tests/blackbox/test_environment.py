"""The tests' own guard, and who agents are: nothing of this shell's reaches them, and they are nobody special."""

import hashlib
import json
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from steadyhand.errors import ConfigError
from steadyhand.testing.cli import DUMMY_API_KEY
from steadyhand.testing.live_folders import contents_below
from steadyhand.testing.service import ADMIN_KEY, CLASSIC_KEY, MakeService, Service
from steadyhand.testing.shell import shell_prompt

LEAKS = ("ANTHROPIC_", "CLAUDE", "IS_SANDBOX", "AWS_", "GITHUB_")


@pytest.mark.parametrize("profile", ["default", pytest.param("classic", marks=pytest.mark.long)])
def test_nothing_of_this_shell_reaches_the_service_or_an_agent(
    make_service: MakeService, monkeypatch: pytest.MonkeyPatch, profile: str
) -> None:
    marks = {f"{prefix}LEAKED": f"leak-of-{prefix}" for prefix in LEAKS}
    for name, value in {**marks, "IS_SANDBOX": "1", "ANTHROPIC_API_KEY": "leak-of-a-real-key"}.items():
        monkeypatch.setenv(name, value)
    service = make_service(classic=profile == "classic").start()
    own = Path(f"/proc/{service.pid}/environ").read_bytes()
    given = dict(pair.split("=", 1) for pair in os.fsdecode(own).split("\0") if pair)
    assert given == service.environment()
    agents = json.loads(
        service.run_job("[[standin: report]]", agent="issue-responder", workspace="default")["answer"]
    )
    for environment in (given, agents["environment"]):
        assert "leak-of" not in str(environment)
        assert "IS_SANDBOX" not in environment
        assert urlsplit(environment["ANTHROPIC_BASE_URL"]).hostname in ("127.0.0.1", "model.invalid")
    assert given["ANTHROPIC_API_KEY"] == DUMMY_API_KEY
    # What an agent says of a live secret is taken out: that it is gone shows that it was one.
    assert secrets_in(agents["environment"]) == (["ANTHROPIC_API_KEY"] if profile == "classic" else [])
    assert DUMMY_API_KEY not in agents["environment"].values()


@pytest.mark.parametrize(
    "env",
    [
        {"ANTHROPIC_BASE_URL": None},
        {"ANTHROPIC_BASE_URL": "https://model.example.org"},
        {"ANTHROPIC_BASE_URL": "http://127.0.0.1.example.org:80"},
        {"ANTHROPIC_BASE_URL": "http://127.0.0.1:80@example.org"},
        {"ANTHROPIC_BASE_URL": "http://10.0.0.1:8080", "ANTHROPIC_API_KEY": None},
        {"ANTHROPIC_BASE_URL": None, "ANTHROPIC_API_KEY": None, "CLAUDE_CODE_OAUTH_TOKEN": "a-token"},
    ],
)
def test_no_service_of_a_test_is_started_that_could_reach_a_real_model(
    make_service: MakeService, env: dict[str, str | None]
) -> None:
    service = make_service(env=env)
    with pytest.raises(ConfigError, match="loopback"):
        service.start()
    assert not service.data_dir.exists()


def secrets_in(environment: dict[str, str]) -> list[str]:
    """Give the names of variables whose values, as an agent told them, held a secret of the service."""
    return [name for name, value in environment.items() if "[redacted]" in value]


def test_an_agent_is_given_none_of_the_services_keys_and_little_else(default_service: Service) -> None:
    environment = json.loads(default_service.run_job("[[standin: report]]")["answer"])["environment"]
    assert not [name for name in environment if name.startswith("STEADYHAND_") or name == "API_BEARER_TOKEN"]
    assert not {ADMIN_KEY, CLASSIC_KEY} & set(environment.values())
    assert DUMMY_API_KEY not in environment.values()
    assert secrets_in(environment) == []
    assert (environment["HOME"], environment["CLAUDE_CONFIG_DIR"]) == ("/home/agent", "/home/agent/.claude")


def test_an_agent_without_a_boundary_has_a_home_of_its_own_all_the_same(open_service: Service) -> None:
    environment = json.loads(open_service.run_job("[[standin: report]]")["answer"])["environment"]
    assert not [name for name in environment if name.startswith("STEADYHAND_") or name == "API_BEARER_TOKEN"]
    assert not {ADMIN_KEY, CLASSIC_KEY} & set(environment.values())
    # The token of its run, in the place of the service's key.
    assert secrets_in(environment) == ["ANTHROPIC_API_KEY"]
    digest = open_service.run_job(shell_prompt("printf %s $ANTHROPIC_API_KEY | sha256sum | cut -d' ' -f1"))[
        "answer"
    ]
    assert digest not in [hashlib.sha256(each.encode()).hexdigest() for each in ("", DUMMY_API_KEY)]
    assert environment["HOME"] != str(open_service.home)
    assert environment["CLAUDE_CONFIG_DIR"].startswith(str(open_service.data_dir))


def test_each_job_has_a_config_directory_of_its_own(open_service: Service) -> None:
    jobs = [open_service.run_job("[[standin: report]]") for _ in range(2)]
    folders = [json.loads(job["answer"])["environment"]["CLAUDE_CONFIG_DIR"] for job in jobs]
    assert all(job["id"] in Path(folder).parts for job, folder in zip(jobs, folders, strict=True))


@pytest.mark.parametrize("level", ["sealed", "open", "classic"])
def test_agents_run_as_an_unprivileged_user_of_their_slot(
    request: pytest.FixtureRequest, root_only: None, level: str
) -> None:
    service: Service = request.getfixturevalue(f"{level}_service")
    found = json.loads(service.run_job("[[standin: report]]")["answer"])
    assert found["uid"] == found["gid"]
    if level == "sealed":
        assert found["uid"] == 1000  # as which it is shown to itself
    else:
        assert service.uid_base <= found["uid"] < service.uid_base + 4
    assert found["groups"] in ([], [found["gid"]])


@pytest.mark.parametrize(
    "command",
    [
        "ls {data}",
        "cat {data}/steadyhand.db",
        "ls {data}/mirrors",
        "touch {data}/x",
        "cat /proc/{pid}/environ",
        "kill -0 {pid}",
    ],
)
def test_an_agent_cannot_look_into_the_service_or_touch_it(
    default_service: Service, root_only: None, command: str
) -> None:
    asked = command.format(data=default_service.data_dir, pid=default_service.pid)
    job = default_service.run_job(f'[[standin: run="{asked}" text={{last}}]]')
    finished = [
        event["data"] for event in default_service.events(job["id"]) if event["type"] == "tool.finished"
    ]
    assert finished[0]["is_error"] is True, job["answer"]


def test_an_agent_cannot_read_another_jobs_files(
    default_service: Service, root_only: None, common_dir: Path
) -> None:
    go = common_dir / "go"
    first = default_service.submit(f"[[standin: write=secret.txt:mine touch={common_dir}/on wait_for={go}]]")[
        "id"
    ]
    try:
        second = default_service.run_job(
            f'[[standin: run="cat {default_service.data_dir}/jobs/{first}/checkout/secret.txt"]]'
        )
        finished = [e["data"] for e in default_service.events(second["id"]) if e["type"] == "tool.finished"]
        assert finished[0]["is_error"] is True
    finally:
        go.touch()
    assert default_service.wait_until_ended(first)["state"] == "completed"


def test_no_key_is_in_the_data_directory_or_the_log(service: Service) -> None:
    service.run_job("hello")
    log = (service.log_path, service.log_path.read_bytes())
    for path, content in (log, *contents_below(service.data_dir)):
        assert ADMIN_KEY.encode() not in content, path
        assert CLASSIC_KEY.encode() not in content, path
