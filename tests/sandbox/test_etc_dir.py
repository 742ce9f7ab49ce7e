from pathlib import Path

from steadyhand.sandbox.etc_dir import make_etc


def test_only_what_programs_need_and_every_user_may_read_is_taken(tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    for name, mode in {
        "shadow": 0o600, "passwd": 0o644, "hosts": 0o644, "ssl/private/server.key": 0o644,
        "ssl/certs/ca.pem": 0o644, "ssl/certs/closed.pem": 0o600, "services": 0o644, "pip.conf": 0o644,
        "ssh/ssh_host_key": 0o644,
    }.items():  # fmt: skip
        path = machine / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"of the machine: {name}")
        path.chmod(mode)
    (machine / "localtime").symlink_to("/usr/bin/env")
    (machine / "ssl/certs/leading-out.pem").symlink_to(machine / "shadow")
    (machine / "ssl/certs/leading-nowhere.pem").symlink_to("/nonexistent")
    (machine / "ssl/certs/loop.pem").symlink_to("loop.pem")
    (machine / "ssl/certs/by-way.pem").symlink_to("../../localtime")
    made = make_etc(tmp_path, host_etc=machine)
    found = {str(path.relative_to(made)) for path in made.rglob("*") if not path.is_dir()}
    ours = {"passwd", "group", "hosts", "hostname", "shells", "resolv.conf"}
    assert found == ours | {"ssl/certs/ca.pem", "ssl/certs/by-way.pem", "services", "localtime"}
    assert (made / "ssl/certs/by-way.pem").readlink() == Path("/usr/bin/env").resolve()
    assert "of the machine" not in (made / "passwd").read_text() + (made / "hosts").read_text()
    assert (made / "localtime").readlink() == Path("/usr/bin/env").resolve()


def test_it_is_made_anew_at_each_start_with_places_for_what_is_bound(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "stale").touch()
    made = make_etc(tmp_path, placeholders=[Path("/etc/deep/key"), Path("/run/secrets/key")])
    assert not (made / "stale").exists()
    assert (made / "deep" / "key").read_bytes() == b""
    assert not (tmp_path / "run").exists()
    assert {oct(path.stat().st_mode & 0o777) for path in made.rglob("*") if path.is_dir()} == {"0o755"}
    assert not list(tmp_path.glob("etc.*"))


def test_no_link_leads_out_of_it_or_usr(tmp_path: Path) -> None:
    made = make_etc(tmp_path)
    for path in made.rglob("*"):
        if path.is_symlink():
            assert path.readlink().is_relative_to("/usr"), path
    assert "shadow" not in {path.name for path in made.rglob("*")}
