"""Which secrets a service knows, and that its log, its errors and its own pages do not tell them."""

import base64
import io
import json
import logging
from pathlib import Path

import pytest
import structlog
from tests.api.api_service import ADMIN, running_service
from typer.testing import CliRunner

import steadyhand.cli.service  # noqa: F401  # adds its commands
from steadyhand.api import ApiOptions
from steadyhand.cli.app import app
from steadyhand.config.secret_values import read_secrets, secret_values
from steadyhand.config.settings import load_settings
from steadyhand.redact import Redactor
from steadyhand.serve.logs import configure_logging
from steadyhand.serve.redaction import log_short_secrets

CANARY = "sk-canary-41Xw9TtR9bLm6"


@pytest.fixture
def log() -> io.StringIO:
    """The service's log, as it goes out."""
    stream = io.StringIO()
    configure_logging("info", Redactor([CANARY]), stream)
    return stream


def toml(folder: Path) -> Path:
    files = {
        "token": CANARY,
        "env": "export A_TOKEN='value-of-a-token'\nB=short\n-----BEGIN X-----\nsome more words\n",
        "key": "of-another-provider",
        "git": "https://user:p%40ss-w0rd@example.org\n",
        "tiny": "1234",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    (folder / "binary").write_bytes(b"\x00\xff\xfebinary-secret\x80")
    (folder / "large").write_bytes(b"z" * 200_000)
    path = folder / "steadyhand.toml"
    path.write_text(f"""
[service]
database_url = "postgresql://me:database-pass@localhost/x"
[git]
credential_file = "{folder}/git"
[providers.other]
api_key_file = "{folder}/key"
[agents.a]
secrets = ["{folder}/token", "{folder}/env", "{folder}/tiny", "{folder}/none", "{folder}"]
env = {{MY_TOKEN = "of-the-profile", MODE = "not-a-secret"}}
[workspaces.w]
repository = "https://me:in-the-address@example.org/x.git"
setup_secrets = ["{folder}/binary", "{folder}/large"]
""")
    return path


def test_the_live_secrets_are_those_that_the_service_has_or_grants(tmp_path: Path) -> None:
    (tmp_path / "admin.key").write_text("sh_admin_local-key\n")
    environ = {
        "STEADYHAND_DATA_DIR": str(tmp_path),
        "ANTHROPIC_API_KEY": "the-api-key",
        "CLAUDE_CODE_OAUTH_TOKEN": "the-oauth-token",
        "API_BEARER_TOKEN": "the-bearer",
        "STEADYHAND_API_KEY": "the-admin",
        "HOME": "/home/somebody",
    }
    settings = load_settings(toml(tmp_path), environ=environ)
    found = set(secret_values(settings))
    wanted = {
        b"sh_admin_local-key", b"the-api-key", b"the-oauth-token", b"the-bearer", b"the-admin", CANARY.encode(),
        b"value-of-a-token", b"export A_TOKEN='value-of-a-token'", b"some more words", b"of-another-provider",
        b"p%40ss-w0rd", b"p@ss-w0rd", b"\x00\xff\xfebinary-secret\x80", b"z" * 65_536, b"of-the-profile",
        b"in-the-address", b"database-pass", b"1234",
    }  # fmt: skip
    assert wanted <= found
    assert not found & {b"not-a-secret", b"-----BEGIN X-----", b"short", b"/home/somebody"}
    assert [each.name for each in read_secrets(settings) if each.is_short] == [str(tmp_path / "tiny")]


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql://me:p%40ss-word-1@h/x", "p@ss-word-1"),
        ("postgresql://me:has#a?and[in-it@h/x", "has#a?and[in-it"),
        ("postgresql://h/x?user=me&password=as%20an%20option&sslmode=require", "as an option"),
        ("postgresql://h/x?sslpassword=of-the-certificate", "of-the-certificate"),
    ],
)
def test_the_password_of_a_database_is_a_secret_however_its_address_has_it(
    tmp_path: Path, url: str, password: str
) -> None:
    environ = {
        "STEADYHAND_DATA_DIR": str(tmp_path),
        "STEADYHAND_DATABASE_URL": url,
        "PGPASSWORD": "of-libpq-itself",
    }
    found = secret_values(load_settings(None, environ=environ))
    assert {password.encode(), b"of-libpq-itself"} <= set(found)


def test_a_secret_of_a_file_ends_with_its_line_and_nowhere_else(tmp_path: Path) -> None:
    separators = "\u2028", "\u2029", "\x85", "\x0b", "\x1c"
    lines = [f"one{each}secret-word" for each in separators]
    (tmp_path / "odd").write_text("\n".join([*lines, "NAME=a\u2028value"]), "utf-8")
    (tmp_path / "latin").write_bytes(b"first \xe9 line\r\nsecond \xe9 line\n")
    path = tmp_path / "steadyhand.toml"
    path.write_text(f'[agents.a]\nsecrets = ["{tmp_path}/odd", "{tmp_path}/latin"]\n')
    found = set(secret_values(load_settings(path, environ={"STEADYHAND_DATA_DIR": str(tmp_path)})))
    assert {line.encode() for line in lines} <= found
    assert {"a\u2028value".encode(), b"first \xe9 line", b"second \xe9 line"} <= found
    assert b"secret-word" not in found


def test_the_log_says_once_which_secrets_are_too_short(tmp_path: Path, log: io.StringIO) -> None:
    log_short_secrets(load_settings(toml(tmp_path), environ={"STEADYHAND_DATA_DIR": str(tmp_path)}))
    [line] = map(json.loads, log.getvalue().splitlines())
    assert (line["event"], line["names"], line["level"]) == ("secrets.short", ["tiny"], "warning")


def test_no_line_of_the_log_holds_a_secret(log: io.StringIO) -> None:
    logger = structlog.get_logger("test")
    encoded = base64.b64encode(f"u:{CANARY}".encode()).decode()
    text = f"one {CANARY}"
    logger.info(text, **{CANARY: [CANARY, {"deep": json.dumps(json.dumps(CANARY))}]}, b=encoded)
    logger.info("two", error=ValueError(CANARY), path=Path(CANARY))
    try:
        int(f"three {CANARY}")
    except ValueError:
        logger.exception("failed")
        logging.getLogger("uvicorn.error").exception("four %s", CANARY)
    logging.getLogger("asyncio").info("too quiet %s", CANARY)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert [line["event"] for line in lines] == ["one [redacted]", "two", "failed", "four [redacted]"]
    assert "base 10: 'three [redacted]'" in lines[2]["exception"]
    assert "base 10: 'three [redacted]'" in lines[3]["exception"]
    assert CANARY not in log.getvalue()
    assert encoded[4:-4] not in log.getvalue()


def test_config_and_doctor_do_not_print_what_is_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEADYHAND_DATA_DIR", str(tmp_path))
    path = toml(tmp_path)
    for words in (["config"], ["config", "--json"], ["doctor", "--json"]):
        printed = CliRunner().invoke(app, [*words, "--config", str(path)]).output
        assert printed
        for secret in ("database-pass", "of-the-profile", "in-the-address", CANARY):
            assert secret not in printed
        if words[0] == "config":
            assert "[redacted]" in printed


def test_no_error_of_the_api_gives_a_secret_back(tmp_path: Path) -> None:
    with (
        running_service(tmp_path, options=ApiOptions(redactor=Redactor([CANARY]))) as service,
        service.client(ADMIN) as client,
    ):
        asked: list[dict[str, object]] = [
            {"prompt": "x", CANARY: 1},
            {"prompt": "x", "agent": f"{CANARY}/{CANARY}"},
            {"prompt": "x", "agent": CANARY, "workspace": CANARY, "model": f"{CANARY}\0"},
            {"prompt": {CANARY: CANARY}, "metadata": CANARY},
        ]
        for body in asked:
            answer = client.post("/v1/jobs", json=body)
            if answer.is_error:
                assert CANARY not in answer.text
        told = client.post("/v1/jobs", json=asked[0])
        assert told.status_code == 422
        assert "[redacted]" in told.json()["detail"]
        assert client.get(f"/v1/jobs?cursor={CANARY}&{CANARY}=1").text.count(CANARY) == 0
        assert client.get(f"/v1/{CANARY}").text.count(CANARY) == 0
