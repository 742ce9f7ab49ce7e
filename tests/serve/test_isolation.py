import asyncio
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from steadyhand.agents import Agent, Workspace
from steadyhand.clock import utc_now
from steadyhand.config.settings import Settings, load_settings
from steadyhand.errors import ConfigError
from steadyhand.ports import Checkout, Command, DoctorCheck, JobPaths, RunContext
from steadyhand.runner.claude.environment import model_environment
from steadyhand.runner.process.trial_run import try_command
from steadyhand.sandbox.etc_dir import make_etc
from steadyhand.sandbox.sandbox import BwrapSandbox, NoSandbox
from steadyhand.serve.doctor import run_checks
from steadyhand.serve.gateway_setup import create_gateway
from steadyhand.serve.isolation import (
    IsolationLevel,
    check_isolation,
    choose_level,
    describe_checkouts,
    host_network_users,
    log_isolation,
    sandbox_unavailable_message,
)
from steadyhand.serve.isolation import _failure_reason as why_not
from steadyhand.serve.isolation import _trial_checkout as a_trial
from steadyhand.serve.runner_setup import create_environment
from steadyhand.testing.contracts.samples import make_job
from steadyhand.testing.memory_ledger import MemoryLedger

KEY = "sk-ant-canary-of-the-service"
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root has mounts of its own")


def settings_of(world_dir: Path, standin: Path, text: str = "", **environ: str) -> Settings:
    file = world_dir / "steadyhand.toml"
    file.write_text(text)
    (world_dir / "data").mkdir(exist_ok=True)
    (world_dir / "data").chmod(0o711)
    given = {
        "PATH": "/usr/bin:/bin",
        "STEADYHAND_DATA_DIR": str(world_dir / "data"),
        "STEADYHAND_ISOLATION": "bwrap",
        "STEADYHAND_RUNNER__CLAUDE__PATH": str(standin),
        "ANTHROPIC_API_KEY": KEY,
        "SECRET_OF_THE_SERVICE": "canary",
    }
    return load_settings(file, environ=given | environ)


def level(settings: Settings, standin: Path) -> IsolationLevel:
    return asyncio.run(choose_level(settings, standin))


def a_place(world_dir: Path) -> Checkout:
    files = JobPaths(world_dir / "data" / "jobs" / "j")
    return Checkout(Workspace("w"), files, files.checkout, files.home, files.config_dir, 64_000, None)


@dataclass(frozen=True)
class ChosenLevel:
    """A level that was tried: its settings, and what was in the data directory and mounted before and after."""

    settings: Settings
    key: Path
    level: IsolationLevel
    mounts: tuple[str, str]
    folders: list[str]
    staged: list[str]


@pytest.fixture(scope="module")
def chosen(standin: Path) -> Iterator[ChosenLevel]:
    """The level of a service with limits, and with a secret that only root may read."""
    root = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    root.chmod(0o755)
    key = root / "deep" / "key"
    key.parent.mkdir(mode=0o700)
    key.write_text("secret")
    key.chmod(0o600)
    text = f"""
    [defaults]
    memory = "1G"
    processes = 99
    [agents.small]
    memory = "64M"
    [agents.a]
    secrets = ["{key}"]
    """
    settings = settings_of(root, standin, text)
    before = Path("/proc/self/mountinfo").read_text()
    found = level(settings, standin)
    after = Path("/proc/self/mountinfo").read_text()
    folders, staged = (
        sorted(path.name for path in folder.iterdir())
        for folder in (settings.data_dir, settings.data_dir / "stage")
    )
    yield ChosenLevel(settings, key, found, (before, after), folders, staged)
    shutil.rmtree(root, ignore_errors=True)


@AS_ROOT
def test_the_level_is_tried_and_leaves_nothing_behind(chosen: ChosenLevel) -> None:
    found = chosen.level
    assert found.is_sandboxed
    assert found.missing_protections == ()
    assert (found.overlay, found.no_overlay_reason) == (True, None)
    assert chosen.folders == ["etc", "stage"]
    assert chosen.staged == []
    assert chosen.mounts[1] == chosen.mounts[0]


def test_a_machine_without_a_filter_of_system_calls_is_refused(
    world_dir: Path, standin: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("steadyhand.sandbox.seccomp.build_filter", lambda: b"")
    with pytest.raises(ConfigError) as caught:
        level(settings_of(world_dir, standin), standin)
    assert "there is no system call filter for" in caught.value.detail
    assert "STEADYHAND_ISOLATION=none" in caught.value.detail


LEAVING_OUT = """#!/usr/bin/python3 -IS
import os, sys
words = b""
while part := os.read(10, 65536):
    words += part
words = words.split(b"\\0")[:-1]
for out in {out!r}:
    at = words.index(out[0])
    while words[at : at + len(out)] != out:
        at = words.index(out[0], at + 1)
    del words[at : at + len(out)]
if any(word in {refused!r} for word in words):
    sys.exit("bwrap: Unknown option " + words[0].decode())
changed = os.memfd_create("words", 0)
os.write(changed, b"".join(word + b"\\0" for word in words))
os.lseek(changed, 0, os.SEEK_SET)
os.dup2(changed, 10)
os.execv("/usr/bin/bwrap", ["/usr/bin/bwrap", *sys.argv[1:]])
"""


def another_bwrap(
    world_dir: Path, *, out: Sequence[Sequence[bytes]] = (), refused: Sequence[bytes] = ()
) -> str:
    """Make a bwrap that leaves out some of its options or refuses some, and give a PATH with it."""
    fake = world_dir / "bin" / "bwrap"
    fake.parent.mkdir()
    fake.write_text(LEAVING_OUT.format(out=[list(words) for words in out], refused=tuple(refused)))
    fake.chmod(0o755)
    return f"{fake.parent}:/usr/bin:/bin"


@pytest.mark.long
def test_the_bwrap_of_these_tests_is_one_when_it_leaves_nothing_out(world_dir: Path, standin: Path) -> None:
    assert level(settings_of(world_dir, standin, PATH=another_bwrap(world_dir)), standin).is_sandboxed


@pytest.mark.parametrize(
    ("out", "said"),
    [
        pytest.param(
            [[b"--unshare-uts"], [b"--hostname", b"sandbox"]],
            "no uts namespace of its own",
            marks=pytest.mark.long,
        ),
        pytest.param([[b"--unshare-ipc"]], "no ipc namespace of its own", marks=pytest.mark.long),
        ([[b"--seccomp", b"11"]], "system calls are not filtered"),
        ([[b"--remount-ro", b"/"]], "it can write to /"),
    ],
)
def test_a_sandbox_that_leaves_out_what_is_essential_is_refused(
    world_dir: Path, standin: Path, out: list[list[bytes]], said: str
) -> None:
    settings = settings_of(world_dir, standin, PATH=another_bwrap(world_dir, out=out))
    with pytest.raises(ConfigError) as caught:
        level(settings, standin)
    assert said in caught.value.detail
    assert "STEADYHAND_ISOLATION=none" in caught.value.detail


def test_a_network_that_is_not_the_run_s_own_is_refused(world_dir: Path, standin: Path) -> None:
    """Without its doors a run's network is made by bwrap, so that is the one to leave out."""
    settings = settings_of(world_dir, standin, PATH=another_bwrap(world_dir, out=[[b"--unshare-net"]]))
    best = sandbox_of(settings, standin)
    with a_trial(settings) as place:
        lesser = replace(best, egress_network=False)
        assert asyncio.run(why_not(lesser, place)) == "it has no net namespace of its own"


def sandbox_of(settings: Settings, cli: Path) -> BwrapSandbox:
    (settings.data_dir / "stage").mkdir(exist_ok=True)
    return BwrapSandbox.detect(
        settings.data_dir,
        cli,
        program_name="claude",
        config_dir_name=".claude",
        etc_dir=make_etc(settings.data_dir),
        search_path=settings.path,
    )


def test_whatever_is_missing_what_is_essential_holds(world_dir: Path, standin: Path) -> None:
    settings = settings_of(world_dir, standin)
    best = sandbox_of(settings, standin)
    forms = list(best.fallbacks())
    assert len(forms) == (5 if os.geteuid() == 0 else 3)
    with a_trial(settings) as place:
        for lesser, weaker in forms:
            assert asyncio.run(why_not(lesser, place)) is None, weaker


def test_a_weaker_form_is_named_with_what_it_means_in_the_log_and_by_doctor(
    world_dir: Path, standin: Path
) -> None:
    path = another_bwrap(world_dir, refused=[b"--disable-userns"])
    settings = settings_of(world_dir, standin, PATH=path)
    found = level(settings, standin)
    with capture_logs() as logged:
        log_isolation(settings, found)
    told = [entry for entry in logged if entry["event"] == "isolation.partly"]
    assert [entry["log_level"] for entry in told] == ["warning"] * len(found.missing_protections)
    assert "lock on user namespaces" in told[0]["missing"]
    assert "bwrap: Unknown option" in told[0]["missing"]
    assert "filter of system calls alone" in told[0]["meaning"]
    lines = [check.detail for check in asyncio.run(check_isolation(settings, standin))]
    for each in found.missing_protections:
        assert str(each) in lines


def test_without_a_boundary_a_service_for_other_machines_is_warned_of_twice(
    world_dir: Path, standin: Path
) -> None:
    for host, wanted in (
        ("127.0.0.1", ["isolation.none"]),
        ("192.0.2.1", ["isolation.none", "isolation.none.exposed"]),
    ):
        settings = settings_of(world_dir, standin, STEADYHAND_ISOLATION="none", STEADYHAND_SERVER__HOST=host)
        with capture_logs() as logged:
            log_isolation(settings, level(settings, standin))
        assert [(entry["event"], entry["log_level"]) for entry in logged] == [
            (name, "warning") for name in wanted
        ]


def test_without_bwrap_the_service_does_not_start_and_says_what_to_install(
    world_dir: Path, standin: Path
) -> None:
    settings = settings_of(world_dir, standin, PATH=str(world_dir))
    with pytest.raises(ConfigError, match="apt-get install bubblewrap"):
        level(settings, standin)


def test_a_bwrap_that_is_refused_stops_the_start_and_never_falls_back(world_dir: Path, standin: Path) -> None:
    fake = world_dir / "bin" / "bwrap"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    settings = settings_of(world_dir, standin, PATH=f"{fake.parent}:/usr/bin:/bin")
    with pytest.raises(ConfigError) as caught:
        level(settings, standin)
    assert "No permissions to create new namespace" in caught.value.detail
    assert "STEADYHAND_ISOLATION=none" in caught.value.detail


@AS_ROOT
def test_a_data_directory_that_agents_cannot_come_to_is_refused_with_the_folder(
    world_dir: Path, standin: Path
) -> None:
    settings = settings_of(world_dir, standin)
    world_dir.chmod(0o700)
    with pytest.raises(ConfigError) as caught:
        level(settings, standin)
    assert f"chmod o+x {world_dir}" in caught.value.detail
    assert "STEADYHAND_ISOLATION=none" in caught.value.detail


def test_an_egress_list_that_means_nothing_stops_the_start(world_dir: Path, standin: Path) -> None:
    settings = settings_of(world_dir, standin, "[agents.a]\negress = ['http://example.org/']\n")
    with pytest.raises(ConfigError, match="names no host"):
        level(settings, standin)


@pytest.mark.parametrize(
    ("reason", "found", "said"),
    [
        ("x", {"kernel/unprivileged_userns_clone": "0"}, "sysctl -w kernel.unprivileged_userns_clone=1"),
        ("x", {"user/max_user_namespaces": "0"}, "sysctl -w user.max_user_namespaces="),
        ("x", {"kernel/apparmor_restrict_unprivileged_userns": "1"}, "AppArmor profile for bwrap"),
        ("x", {"container": "yes"}, "systempaths=unconfined"),
        ("bwrap: Can't mount proc on /newroot/proc: Operation not permitted", {}, "systempaths=unconfined"),
        ("bwrap: something new", {"user/max_user_namespaces": "9999"}, "must work"),
    ],
)
def test_a_refusal_names_the_reason_the_remedy_and_the_other_choice(
    reason: str, found: dict[str, str], said: str
) -> None:
    text = sandbox_unavailable_message(reason, found)
    assert reason in text
    assert said in text
    assert "STEADYHAND_ISOLATION=none" in text


def granted_by(settings: Settings, world_dir: Path) -> dict[str, str]:
    """Give all that a sealed agent is told by the service and by its gateway."""
    place = a_place(world_dir)
    gateway = create_gateway(settings, MemoryLedger(), sandboxed=True, clock=utc_now)
    assert gateway is not None
    job = replace(make_job(), agent="a")

    async def main() -> dict[str, str]:
        async with (
            gateway.serving(),
            gateway.open_run(RunContext(job, Agent("a"), place), nothing) as attendance,
        ):
            return model_environment(attendance.model_access)

    async def nothing(_body: object) -> None:
        pass

    return {
        **create_environment(settings, sandboxed=True, without_gateway=False)(Agent("a"), place),
        **asyncio.run(main()),
    }


def test_a_sealed_agent_gets_no_credential_and_nothing_of_the_service_s_environment(
    world_dir: Path, standin: Path
) -> None:
    for profile in ("default", "classic"):
        settings = settings_of(world_dir, standin, STEADYHAND_PROFILE=profile)
        granted = granted_by(settings, world_dir)
        assert "canary" not in repr(granted)
        assert granted["ANTHROPIC_UNIX_SOCKET"] == "/run/steadyhand/model.sock"
        assert granted["ANTHROPIC_API_KEY"].startswith("sk-ant-placeholder")


def test_the_placeholder_is_of_the_kind_of_the_credential(world_dir: Path, standin: Path) -> None:
    settings = settings_of(world_dir, standin, ANTHROPIC_API_KEY="", CLAUDE_CODE_OAUTH_TOKEN="oauth-canary")
    granted = granted_by(settings, world_dir)
    assert "ANTHROPIC_API_KEY" not in granted
    assert "canary" not in granted["CLAUDE_CODE_OAUTH_TOKEN"]


@AS_ROOT
def test_limits_of_the_settings_reach_the_sandbox(chosen: ChosenLevel) -> None:
    sandbox = chosen.level.sandbox
    assert isinstance(sandbox, BwrapSandbox)
    catalogue = chosen.settings.build_catalog()
    assert sandbox.resource_limits(catalogue.agent("claude")).memory == 1024**3
    assert sandbox.resource_limits(catalogue.agent("small")).memory == 64 * 1024**2
    assert sandbox.resource_limits(catalogue.agent("small")).processes == 99


def test_who_shares_the_network_is_told_at_the_start(world_dir: Path, standin: Path) -> None:
    text = """
    [workspaces.w]
    repository = "/srv/w"
    setup_egress = ["host"]
    [agents.open]
    egress = "host"
    [agents.listed]
    egress = ["host.example"]
    """
    catalogue = settings_of(world_dir, standin, text).build_catalog()
    assert host_network_users(catalogue) == ["agent open", "setup of w"]


def looked_at(settings: Settings, standin: Path) -> dict[str, DoctorCheck]:
    return {check.name: check for check in asyncio.run(check_isolation(settings, standin))}


@AS_ROOT
def test_doctor_says_the_level_the_limits_the_checkouts_and_what_each_agent_is_granted(
    world_dir: Path, standin: Path
) -> None:
    key = world_dir / "key"
    key.write_text("canary")
    key.chmod(0o600)
    text = f"""
    [workspaces.w]
    repository = "/srv/w"
    setup_secrets = ["{key}"]
    caches = ["pip"]
    [agents.a]
    env = {{ REGION = "canary-value" }}
    secrets = ["{key}", "/nowhere/key"]
    egress = ["levels.example.org"]
    """
    found = looked_at(settings_of(world_dir, standin, text), standin)
    assert found["isolation"].ok
    assert "system calls are filtered" in found["isolation"].detail
    assert found["limits"].detail
    assert found["checkouts"].detail == "overlays over a warm checkout of their commit"
    agent = found["agent a"]
    assert f"environment: REGION; secrets: {key}, /nowhere/key; egress: levels.example.org" == agent.detail
    assert not agent.ok
    assert "/nowhere/key" in (agent.remedy or "")
    assert found["workspace w grants"].ok
    assert "canary" not in repr(found)
    assert not list((world_dir / "data").glob("doctor-*"))


def test_without_an_overlay_doctor_says_why_and_what_checkouts_are_instead() -> None:
    shared = describe_checkouts(
        IsolationLevel(NoSandbox(), no_overlay_reason="the service is not root", shares_objects=True)
    )
    assert (
        shared
        == "clones that share the mirror's objects, because overlays do not work: the service is not root"
    )
    copied = describe_checkouts(IsolationLevel(NoSandbox(), no_overlay_reason="the service may not mount"))
    assert (
        copied == "clones with a copy of all objects, because overlays do not work: the service may not mount"
    )


def test_doctor_says_why_there_is_no_sandbox_and_what_to_do(world_dir: Path, standin: Path) -> None:
    settings = settings_of(world_dir, standin, PATH=str(world_dir))
    found = asyncio.run(check_isolation(settings, standin))[0]
    assert not found.ok
    assert "no bwrap" in found.detail
    unsealed = settings_of(world_dir, standin, STEADYHAND_ISOLATION="none")
    assert asyncio.run(check_isolation(unsealed, standin))[0].detail.startswith("none: an agent can do")


@AS_ROOT
def test_the_whole_doctor_passes_on_this_machine_when_sealed(world_dir: Path, standin: Path) -> None:
    found = asyncio.run(run_checks(settings_of(world_dir, standin)))
    assert all(check.ok for check in found), [check for check in found if not check.ok]
    assert {"cli", "isolation", "limits", "checkouts"} <= {check.name for check in found}


@AS_ROOT
def test_a_secret_that_only_root_may_read_is_shown_to_the_agent_that_was_granted_it(
    chosen: ChosenLevel,
) -> None:
    sandbox = chosen.level.sandbox
    place = a_place(chosen.settings.data_dir.parent)
    place.paths.root.mkdir(parents=True)
    for folder in (place.paths.checkout, place.paths.home, place.paths.config_dir):
        folder.mkdir()
        os.chown(folder, 64_000, 64_000)
    granted = chosen.settings.build_catalog().agent("a")
    command = Command(["/bin/cat", str(chosen.key)], {"PATH": "/usr/bin"}, Path("/workspace"), 64_000)

    async def read() -> list[str | None]:
        agents = (granted, replace(granted, secrets=()))
        return [await try_command(sandbox.wrap(command, place, agent)) for agent in agents]

    shown, refused = asyncio.run(read())
    assert shown is None
    assert refused is not None
