import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.sandbox.bwrap_harness import BwrapHarness

from steadyhand.agents import Agent, Workspace
from steadyhand.errors import ConfigError, SpawnError
from steadyhand.ports import BindMount, Checkout, Command, JobPaths, Mount, OverlayLayers
from steadyhand.sandbox import bwrap_args
from steadyhand.sandbox.bwrap_args import BwrapBind, RootLayout, bwrap_options, encode_args
from steadyhand.sandbox.sandbox import (
    PROXY_ENV,
    AgentProgram,
    BwrapSandbox,
    DefaultLimits,
    NoSandbox,
    locate_program,
)

FRAME = RootLayout((("/bin", "usr/bin"), ("/lib64", None)))
ARITY = {
    "--unshare-user": 0, "--unshare-pid": 0, "--unshare-ipc": 0, "--unshare-uts": 0, "--unshare-net": 0,
    "--unshare-cgroup-try": 0, "--disable-userns": 0, "--die-with-parent": 0, "--new-session": 0,
    "--clearenv": 0, "--uid": 1, "--gid": 1, "--hostname": 1, "--cap-drop": 1, "--perms": 1, "--size": 1,
    "--dir": 1, "--proc": 1, "--dev": 1, "--tmpfs": 1, "--remount-ro": 1, "--chdir": 1, "--seccomp": 1,
    "--symlink": 2, "--ro-bind": 2, "--bind": 2, "--setenv": 2,
}  # fmt: skip
"""How many words follow each option of bwrap that may be used here."""
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40)
WILD = TEXT | st.sampled_from(
    ["--bind", "--", "--args", "-", "--setenv", "--share-net", "--cap-add", "ALL", ""]
)


def pure_sandbox(stage: Path | None = Path("/data/stage"), **changes: object) -> BwrapSandbox:
    sandbox = BwrapSandbox(
        bwrap=Path("/usr/bin/bwrap"),
        program=AgentProgram(Path("/srv/claude"), Path("/opt/steadyhand/claude"), None),
        config_dir=Path("/home/agent/.claude"),
        layout=FRAME,
        etc_dir=Path("/data/etc"),
        sockets_dir=Path("/data/run"),
        staging_dir=stage,
    )
    return replace(sandbox, **changes)  # type: ignore[arg-type]


def a_place(**changes: object) -> Checkout:
    files = JobPaths(Path("/data/jobs/j"))
    place = Checkout(Workspace("w"), files, files.checkout, files.home, files.config_dir, 64_000, commit=None)
    return replace(place, **changes)  # type: ignore[arg-type]


def parsed(words: list[str]) -> list[tuple[str, ...]]:
    """Read words as bwrap does; fails when a word stands where an option should."""
    found = []
    at = 0
    while at < len(words):
        count = ARITY[words[at]]
        found.append(tuple(words[at : at + 1 + count]))
        assert len(found[-1]) == count + 1
        at += 1 + count
    return found


def options_of(command: Command) -> list[tuple[str, ...]]:
    assert command.sandbox is not None
    data = command.sandbox.input_data[10]
    assert data.endswith(b"\0")
    return parsed([word.decode("utf-8", "surrogateescape") for word in data[:-1].split(b"\0")])


# --- no value becomes an option ------------------------------------------------------------------


@given(
    env=st.dictionaries(WILD, WILD, max_size=5),
    secrets=st.lists(WILD.map(lambda text: f"/s/{text}"), max_size=4),
    sources=st.lists(WILD.map(lambda text: f"/src/{text}"), max_size=3),
    argv=st.lists(WILD, min_size=1, max_size=5),
)
def test_no_value_of_env_secrets_paths_or_the_command_line_becomes_an_option(
    env: dict[str, str], secrets: list[str], sources: list[str], argv: list[str]
) -> None:
    binds = tuple(BindMount(Path(each), Path("/b") / str(n)) for n, each in enumerate(sources))
    plain = pure_sandbox().wrap(Command(["x"], {}, Path("/")), a_place(), Agent("a"))
    wild = pure_sandbox().wrap(
        Command(argv, env, Path("/")), a_place(binds=binds), Agent("a", secrets=tuple(secrets))
    )
    more = [each for each in options_of(wild) if each not in options_of(plain)]
    assert {each[0] for each in more} <= {"--setenv", "--ro-bind", "--perms", "--dir"}
    assert {each[1]: each[2] for each in options_of(wild) if each[0] == "--setenv"} == {**PROXY_ENV, **env}
    assert list(wild.argv) == ["/usr/bin/bwrap", "--args", "10", "--", *argv]
    assert wild.env == {}


@given(value=TEXT.map(lambda text: f"{text}\0--bind\0/\0/host"))
def test_a_nul_byte_anywhere_is_refused(value: str) -> None:
    for command in (Command(["x"], {"A": value}, Path("/")), Command(["x", value], {}, Path("/"))):
        with pytest.raises(SpawnError, match="NUL"):
            pure_sandbox().wrap(command, a_place(), Agent("a"))
    with pytest.raises(SpawnError, match="NUL"):
        pure_sandbox().wrap(Command(["x"], {}, Path("/")), a_place(), Agent("a", secrets=(value,)))


def test_the_command_line_of_bwrap_tells_nothing_of_the_environment_or_the_service() -> None:
    command = Command(["/srv/claude", "-p"], {"KEY": "canary-value"}, Path("/"), 64_000)
    wrapped = pure_sandbox().wrap(command, a_place(), Agent("a", secrets=("/secrets/canary",)))
    assert list(wrapped.argv) == ["/usr/bin/bwrap", "--args", "10", "--", "/opt/steadyhand/claude", "-p"]
    assert "canary" not in repr(wrapped.argv) + repr(wrapped.env)


def test_every_profile_drops_all_and_keeps_nothing_of_the_machine() -> None:
    words = [each[0] for each in parsed(bwrap_options(FRAME, [], {}, unshare_network=True, seccomp_fd=11))]
    for needed in (
        "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-net", "--disable-userns",
        "--die-with-parent", "--new-session", "--cap-drop", "--clearenv", "--seccomp",
    ):  # fmt: skip
        assert needed in words, needed
    shown = [
        each
        for each in parsed(bwrap_options(FRAME, [], {}, unshare_network=True, seccomp_fd=11))
        if "bind" in each[0]
    ]
    assert shown == [("--ro-bind", "/usr", "/usr"), ("--ro-bind", "/lib64", "/lib64")]


def test_folders_above_a_mount_point_are_open_and_outer_binds_come_first() -> None:
    shown = [
        BwrapBind(Path("/s/deep"), Path("/home/agent/.cache/pip")),
        BwrapBind(Path("/s/home"), Path("/home/agent")),
    ]
    words = parsed(bwrap_options(FRAME, shown, {}, unshare_network=False, seccomp_fd=None))
    home = words.index(("--ro-bind", "/s/home", "/home/agent"))
    folder = words.index(("--dir", "/home/agent/.cache"))
    assert home < folder < words.index(("--ro-bind", "/s/deep", "/home/agent/.cache/pip"))
    assert words[folder - 1] == ("--perms", "0755")


def test_options_are_parted_by_nul() -> None:
    assert encode_args(["--dir", "/\udcff"]) == b"--dir\0/\xff\0"


# --- the seal ------------------------------------------------------------------------------------


def test_a_plain_checkout_is_bound_from_the_stage() -> None:
    seal = pure_sandbox().wrap(Command(["x"], {}, Path("/")), a_place(), Agent("a")).sandbox
    assert seal is not None
    by_source = {mount.source: mount for mount in seal.mounts}
    tree = by_source[Path("/data/jobs/j/checkout")]
    assert (tree.kind, tree.writable, tree.owner) == ("bind", True, None)
    assert not by_source[Path("/data/etc")].writable
    assert len({mount.target for mount in seal.mounts}) == len(seal.mounts)
    assert seal.loopback_ports == (3128,)


def test_layers_are_one_overlay_whose_upper_may_be_on_an_image() -> None:
    layers = OverlayLayers(
        Path("/data/warm/x"), Path("/data/jobs/j/upper"), Path("/data/jobs/j/work"), owner=63_999
    )
    command = pure_sandbox().wrap(Command(["x"], {}, Path("/")), a_place(layers=layers), Agent("a"))
    assert command.sandbox is not None
    tree = command.sandbox.mounts[0]
    assert tree == Mount(
        "overlay", "tree", layers.lower, writable=True, owner=63_999, upper=layers.upper, work=layers.work
    )
    assert ("--bind", "/data/stage/tree", "/workspace") in options_of(command)
    imaged = replace(layers, image=Path("/data/jobs/j/disk.img"), upper=Path("up"), work=Path("wk"))
    seal = pure_sandbox().wrap(Command(["x"], {}, Path("/")), a_place(layers=imaged), Agent("a")).sandbox
    assert seal is not None
    assert [mount.kind for mount in seal.mounts[:2]] == ["image", "overlay"]
    assert seal.mounts[1].upper == Path("/data/stage/disk/up")


def test_layers_that_another_process_has_mounted_are_joined_and_not_mounted_again() -> None:
    layers = OverlayLayers(
        Path("/data/warm/x"), Path("up"), Path("wk"), owner=63_999, image=Path("/data/jobs/j/disk.img")
    )
    sandbox = pure_sandbox()
    first = sandbox.wrap(
        Command(["x"], {}, Path("/"), needs_model_socket=True), a_place(layers=layers), Agent("a")
    )
    place = replace(a_place(layers=layers), holder=(7, 8))
    joining = sandbox.wrap(Command(["x"], {}, Path("/")), place, Agent("harvest")).sandbox
    assert first.sandbox is not None
    assert joining is not None
    assert not {"image", "overlay"} & {mount.kind for mount in joining.mounts}
    joined = [mount for mount in joining.mounts if mount.kind == "joined"]
    overlays = [mount.target for mount in first.sandbox.mounts if mount.kind == "overlay"]
    assert joined == [
        Mount("joined", name, Path("/data/stage") / name, writable=True, holder=(7, 8)) for name in overlays
    ]


def test_only_what_is_told_of_the_model_is_shown_the_way_to_it() -> None:
    place = a_place(slot=2)
    for needs_socket in (True, False):
        command = Command(["x"], {"PATH": "/usr/bin"}, Path("/"), needs_model_socket=needs_socket)
        seal = pure_sandbox().wrap(command, place, Agent("a")).sandbox
        assert seal is not None
        assert (Path("/data/run/slot-2") in {mount.source for mount in seal.mounts}) is needs_socket


def test_what_can_be_had_where_not_all_can_is_still_sealed() -> None:
    for lesser, missing in pure_sandbox().fallbacks():
        command = lesser.wrap(Command(["x"], {}, Path("/")), a_place(), Agent("a"))
        words = {each[0] for each in options_of(command)}
        assert {"--unshare-user", "--unshare-pid", "--cap-drop", "--clearenv", "--seccomp"} <= words
        assert command.sandbox is not None
        assert ("--unshare-net" in words) is (command.sandbox.loopback_ports is None)
        assert missing


def test_the_home_of_the_service_is_never_shown() -> None:
    place = a_place(home=Path("/root"), config_dir=None)
    sandbox = pure_sandbox()
    view = sandbox.agent_paths(place)
    assert (str(view.directory), str(view.home), str(view.config_dir)) == (
        "/workspace",
        "/home/agent",
        "/home/agent/.claude",
    )
    seal = sandbox.wrap(Command(["x"], {}, Path("/")), place, Agent("a")).sandbox
    assert seal is not None
    assert Path("/root") not in {mount.source for mount in seal.mounts}
    assert Path("/data/jobs/j/home") in {mount.source for mount in seal.mounts}


def test_an_agent_s_own_limits_win_over_the_defaults() -> None:
    sandbox = pure_sandbox(default_limits=DefaultLimits(memory_bytes=4_000, processes=100, disk_bytes=None))
    assert sandbox.resource_limits(Agent("a")).memory == 4_000
    mine = sandbox.resource_limits(Agent("a", memory_bytes=7, processes=9, disk_bytes=11))
    assert (mine.memory, mine.processes, mine.file_size) == (7, 9, 11)


def test_sharing_the_network_is_asked_for_by_that_one_word_alone() -> None:
    command = Command(["x"], {}, Path("/"))
    for egress in ((), ("host.example",), ("host", "example.org")):
        sealed = pure_sandbox(egress_network=False).wrap(command, a_place(), Agent("a", egress=egress))
        assert ("--unshare-net",) in options_of(sealed)
        seal = pure_sandbox().wrap(command, a_place(), Agent("a", egress=egress)).sandbox
        assert seal is not None
        assert seal.loopback_ports is not None
    shared = pure_sandbox(None, resolv_conf=Path("/run/resolv")).wrap(
        command, a_place(), Agent("a", egress=("host",))
    )
    assert ("--unshare-net",) not in options_of(shared)
    assert ("--ro-bind", "/run/resolv", "/etc/resolv.conf") in options_of(shared)


# --- with the real bwrap -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sealed(standin: Path) -> Iterator[BwrapHarness]:
    """A sandbox that most tests share: what one leaves in its place is in no other one's way."""
    root = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    root.chmod(0o755)
    yield BwrapHarness(root, standin)
    shutil.rmtree(root, ignore_errors=True)


def test_an_agent_sees_itself_as_a_plain_user_in_its_workspace(sealed: BwrapHarness) -> None:
    assert sealed.run_script("id -un; id -u; pwd; hostname; echo $HOME").split() == [
        "agent",
        "1000",
        "/workspace",
        "sandbox",
    ]
    status = sealed.run_script("cat /proc/self/status")
    assert re.search(r"CapBnd:\s0+\n", status)
    assert re.search(r"NoNewPrivs:\s1\n", status)
    assert re.search(r"Seccomp:\s2\n", status)


def test_what_an_agent_writes_is_its_own_and_the_root_takes_nothing(sealed: BwrapHarness) -> None:
    sealed.run_script(
        "echo x > /workspace/a; echo y > ~agent/b; echo z > /home/agent/.claude/c; echo t > /tmp/d; echo >/dev/null"
    )
    files = sealed.place.paths
    assert (files.checkout / "a").read_text() == "x\n"
    assert (files.home / "b").read_text() == "y\n"
    assert (files.config_dir / "c").read_text() == "z\n"
    for place in ("/x", "/usr/x", "/etc/x", "/opt/x", "/run/x", "/home/x", "/dev/x", "/run/steadyhand/x"):
        assert sealed.run("/bin/sh", "-c", f"echo x > {place}").returncode != 0, place


def test_nothing_of_this_machine_is_seen(sealed: BwrapHarness, world_dir: Path) -> None:
    (world_dir / "canary").write_text("host file")
    (world_dir / "canary").chmod(0o644)
    assert sealed.run("/bin/cat", str(world_dir / "canary")).returncode != 0
    assert sealed.run_script("ls -A /root /sys /srv /boot /run 2>/dev/null || true").split() == [
        "/root:",
        "/run:",
    ]
    assert sealed.run("/bin/cat", "/etc/shadow").returncode != 0
    assert sealed.run_script("cut -d: -f1 /etc/passwd").split() == ["root", "agent", "nobody"]
    assert sealed.run_script("ls -d /proc/[0-9]* | wc -l; env").split("\n")[0] in {"3", "4", "5"}


def test_the_environment_is_what_was_given(sealed: BwrapHarness) -> None:
    env = {"PATH": "/usr/bin", "GREETING": "--bind / \n two lines", "EMPTY": ""}
    out = sealed.run("/usr/bin/env", "-0", env=env).stdout.decode().split("\0")
    assert dict(line.split("=", 1) for line in out if line) == {**env, "PWD": "/workspace"}
    assert b"GREETING" not in sealed.run("/bin/sh", "-c", "cat /proc/1/cmdline", env=env).stdout


def test_words_that_look_like_options_reach_the_program(sealed: BwrapHarness) -> None:
    words = ["--bind", "/", "/host", "--", "-c", "--share-net"]
    done = sealed.run("/usr/bin/printf", "%s\\n", *words)
    assert done.stdout.decode().split("\n")[:-1] == words


def test_there_is_no_network_but_loopback(sealed: BwrapHarness) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        script = f"import socket; socket.create_connection(('127.0.0.1', {port}), 3)"
        assert sealed.run("/usr/bin/python3", "-c", script).returncode != 0
        shared = sealed.run("/usr/bin/python3", "-c", script, agent=Agent("a", egress=("host",)))
        assert shared.returncode == 0, shared.stderr
    assert sealed.run_script("tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]


def test_a_secret_is_seen_at_its_own_path_by_the_agent_that_was_granted_it(
    world_dir: Path, standin: Path
) -> None:
    folder = world_dir / "deep" / "secrets"
    folder.mkdir(parents=True)
    for name in ("key", "other"):
        (folder / name).write_text(name)
        (folder / name).chmod(0o644)
    sealed = BwrapHarness(world_dir, standin, secrets=[str(folder / "key")])
    granted = Agent("a", secrets=(str(folder / "key"),))
    assert sealed.run_script(f"cat {folder}/key; ls {folder}", agent=granted) == "keykey\n"
    assert sealed.run("/bin/sh", "-c", f"echo x > {folder}/key", agent=granted).returncode != 0
    assert sealed.run("/bin/cat", f"{folder}/key").returncode != 0


def test_a_secret_below_etc_has_a_place_there(world_dir: Path, standin: Path) -> None:
    sealed = BwrapHarness(world_dir, standin, secrets=["/etc/hostname", "/etc/deep/down/key"])
    said = sealed.run_script("cat /etc/hostname", agent=Agent("a", secrets=("/etc/hostname",)))
    assert said == Path("/etc/hostname").read_text()
    assert sealed.run_script("test -f /etc/deep/down/key && echo there") == "there\n"


def test_the_stand_in_and_the_real_program_run_at_a_fixed_path(
    world_dir: Path, standin: Path, real_cli: Path
) -> None:
    sealed = BwrapHarness(world_dir, standin)
    assert sealed.run(str(standin), "--version").stdout
    program = locate_program(real_cli, "claude")
    assert program.sandbox_path == Path("/opt/steadyhand/claude")
    reachable = world_dir / "claude"
    try:
        reachable.hardlink_to(real_cli)
    except OSError:  # it is on another file system
        shutil.copyfile(real_cli, reachable)
    reachable.chmod(0o755)
    sealed.sandbox = replace(sealed.sandbox, program=locate_program(reachable, "claude"))
    done = sealed.run(str(reachable), "--version", env={"PATH": "/usr/bin", "HOME": "/home/agent"})
    assert b"Claude Code" in done.stdout, done.stderr


def test_a_program_below_usr_is_called_where_it_is() -> None:
    program = locate_program(Path("/usr/bin/env"), "claude")
    assert program.bind is None
    assert program.sandbox_path == Path("/usr/bin/env").resolve()


def test_certificates_locales_and_names_of_users_work_inside(sealed: BwrapHarness) -> None:
    count = "import ssl; print(len(ssl.create_default_context().get_ca_certs()) > 50)"
    assert sealed.run("/usr/bin/python3", "-c", count).stdout == b"True\n"
    assert sealed.run_script(
        "LC_ALL=C.UTF-8 locale charmap; whoami; git --version >/dev/null && echo git"
    ).split() == [
        "UTF-8",
        "agent",
        "git",
    ]


def test_memory_in_tmp_and_shm_is_bounded(sealed: BwrapHarness) -> None:
    sizes = sealed.run_script("df -k --output=size /tmp /dev/shm | tail -n 2").split()
    assert [int(size) * 1024 for size in sizes] == [bwrap_args.TMP_BYTES, bwrap_args.SHM_BYTES]


def test_without_bwrap_there_is_a_remedy(world_dir: Path, standin: Path) -> None:
    with pytest.raises(ConfigError, match="apt-get install bubblewrap") as caught:
        BwrapSandbox.detect(
            world_dir,
            standin,
            program_name="claude",
            config_dir_name=".claude",
            etc_dir=world_dir,
            search_path=str(world_dir),
        )
    assert "STEADYHAND_ISOLATION=none" in caught.value.detail


def test_level_none_shows_what_is_there() -> None:
    place = a_place()
    assert NoSandbox().agent_paths(place) == place.host_paths
