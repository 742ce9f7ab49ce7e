"""The settings of a client: which file is read, and how little of one that a repository may hold."""

import os
from pathlib import Path

import pytest

from steadyhand.config import client
from steadyhand.config.client import ClientSettings, load_client_settings
from steadyhand.config.settings import load_settings
from steadyhand.errors import ConfigError

SERVER = "[server]\nhost = '{host}'\nport = {port}\n"


def settings(home: Path, *, config: Path | None = None, **environ: str) -> ClientSettings:
    """Return the settings of a client that is started in `home / "here"`."""
    (home / "here").mkdir(exist_ok=True)
    return load_client_settings({"HOME": str(home)} | environ, config, home / "here")


@pytest.fixture(autouse=True)
def _no_service_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the data of a service that root runs on this machine out of the tests."""
    monkeypatch.setattr(client, "default_data_dir", lambda _: tmp_path / "default")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def own_file(home: Path, text: str) -> Path:
    return write(home / ".config" / "steadyhand" / "steadyhand.toml", text)


def file_here(home: Path, text: str) -> Path:
    return write(home / "here" / "steadyhand.toml", text)


@pytest.mark.parametrize(
    ("host", "port", "url"),
    [
        ("127.0.0.1", 9001, "http://127.0.0.1:9001"),
        ("0.0.0.0", 9001, "http://127.0.0.1:9001"),  # noqa: S104  # everywhere is here too
        ("::", 9001, "http://[::1]:9001"),
        ("10.1.2.3", 9001, "http://10.1.2.3:9001"),
        ("fd00::1", 9001, "http://[fd00::1]:9001"),
        ("127.0.0.1", 0, "http://127.0.0.1:8080"),
    ],
)
def test_the_named_and_the_user_s_own_file_tell_where_the_service_is(
    tmp_path: Path, host: str, port: int, url: str
) -> None:
    text = SERVER.format(host=host, port=port)
    named = write(tmp_path / "named.toml", text + "[service]\ndata_dir = '/data/of/mine'\n")
    for found in (settings(tmp_path, config=named), settings(tmp_path, STEADYHAND_CONFIG=str(named))):
        assert (found.url, found.file_url, found.data_dir) == (None, url, Path("/data/of/mine"))
    own_file(tmp_path, text)
    assert settings(tmp_path).file_url == url


def test_the_environment_comes_before_a_file_and_a_named_file_before_the_others(tmp_path: Path) -> None:
    own_file(tmp_path, SERVER.format(host="127.0.0.1", port=9001))
    file_here(tmp_path, SERVER.format(host="127.0.0.1", port=9002))
    named = write(tmp_path / "named.toml", SERVER.format(host="127.0.0.1", port=9003))
    assert settings(tmp_path).file_url == "http://127.0.0.1:9002"
    assert settings(tmp_path, config=named).file_url == "http://127.0.0.1:9003"
    found = settings(tmp_path, config=named, STEADYHAND_URL="http://x", STEADYHAND_DATA_DIR="/d")
    assert (found.url, found.data_dir) == ("http://x", Path("/d"))


@pytest.mark.parametrize(
    "host", ["evil.example.org", "10.0.0.1", "127.0.0.1.evil.example.org", "[::1]@evil", ""]
)
def test_a_repository_cannot_send_a_client_to_another_machine(tmp_path: Path, host: str) -> None:
    file_here(tmp_path, SERVER.format(host=host, port=443) + "public_url = 'https://evil.example.org'\n")
    found = settings(tmp_path)
    assert found.url is None
    assert found.file_url in {None, "http://127.0.0.1:443"}
    assert (found.file_url is None) == bool(host)
    assert ("another machine" in " ".join(found.notes)) == bool(host)


def test_a_data_directory_of_somebody_else_is_not_taken_from_a_file_here(tmp_path: Path) -> None:
    theirs = "/" if os.geteuid() else str(tmp_path / "theirs")
    if not os.geteuid():
        Path(theirs).mkdir()
        os.chown(theirs, 64_000, 64_000)
    file_here(tmp_path, f"[service]\ndata_dir = '{theirs}'\n")
    found = settings(tmp_path)
    assert found.data_dir != Path(theirs)
    assert "not yours" in found.notes[0]
    mine = tmp_path / "mine"
    write(mine / "admin.key", "sh_admin_mine\n")
    file_here(tmp_path, f"[service]\ndata_dir = '{mine}'\n")
    assert (settings(tmp_path).data_dir, settings(tmp_path).token) == (mine, "sh_admin_mine")
    assert settings(tmp_path).token_is_local


def test_a_link_in_a_repository_s_data_directory_is_not_read_as_a_key(tmp_path: Path) -> None:
    secret, mine = write(tmp_path / "netrc", "a-password\n"), tmp_path / "mine"
    mine.mkdir()
    (mine / "admin.key").symlink_to(secret)
    file_here(tmp_path, f"[service]\ndata_dir = '{mine}'\n")
    assert settings(tmp_path).token is None
    (mine / "admin.key").unlink()
    os.mkfifo(mine / "admin.key")
    assert settings(tmp_path).token is None


@pytest.mark.parametrize(
    "text",
    [
        "[server",
        "a = " + "[" * 5000,
        "\x00",
        "[server]\nhost = 5\nport = 'x'\n",
        "server = 1\nservice = []\n",
        "[service]\ndata_dir = 7\n",
        "x = '" + "y" * 1_100_000 + "'",
    ],
    ids=["broken", "deep", "nul", "types", "no tables", "data_dir", "large"],
)
def test_a_broken_file_here_stops_no_command_and_a_named_one_is_an_error(tmp_path: Path, text: str) -> None:
    path = file_here(tmp_path, text)
    found = settings(tmp_path)
    assert (found.file_url, found.token) == (None, None)
    if not text.startswith(("[server]", "server", "[service]")):
        assert found.notes
        with pytest.raises(ConfigError, match=r"steadyhand\.toml could not be read"):
            settings(tmp_path, config=path)


def test_a_named_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no configuration file"):
        settings(tmp_path, STEADYHAND_CONFIG=str(tmp_path / "none"))


def test_the_service_reads_the_user_s_own_file_and_not_one_here_unless_it_may(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own_file(tmp_path, "[service]\nconcurrency = 2\n")
    file_here(
        tmp_path, "[service]\nisolation = 'none'\n[providers.default]\nbase_url = 'http://evil.example.org'\n"
    )
    monkeypatch.chdir(tmp_path / "here")
    environ = {"HOME": str(tmp_path)}
    assert load_settings(environ=environ).tables.service.isolation == "none"
    embedded = load_settings(environ=environ, use_working_directory=False)
    assert (embedded.tables.service.isolation, embedded.tables.service.concurrency) == ("bwrap", 2)
    assert embedded.base_url is None
