"""`steadyhand init`: the first configuration file, key and, if asked for, systemd unit of a service."""

import os
import pwd
import shlex
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from steadyhand.cli.app import app
from steadyhand.cli.common_options import AsJson, create_output
from steadyhand.cli.systemd_unit import UNIT_NAME, Installation, Role, find_systemd_version, systemd_unit
from steadyhand.config.client import default_data_dir
from steadyhand.config.locate import FILE_NAME
from steadyhand.errors import ConfigError

_WIDTH = 79


@dataclass(frozen=True, slots=True)
class _Made:
    """The files that were made. `secret` is `None` for a key that was there before."""

    config: Path
    data_dir: Path
    unit: Path | None
    key_file: Path | None
    secret: str | None
    role: Role


@app.command("init")
def initialize(
    *,
    systemd: Annotated[
        bool, typer.Option("--systemd", help=f"Write a systemd unit, too: {UNIT_NAME}.")
    ] = False,
    worker: Annotated[
        bool,
        typer.Option("--worker", help="Let the unit run `steadyhand worker`, for the jobs of other nodes."),
    ] = False,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The port to listen on.")] = 8080,
    data_dir: Annotated[
        Path | None, typer.Option("--data-dir", metavar="DIR", help="Where the service keeps its data.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write a commented steadyhand.toml here, create a key with all rights and print it once.

    No file is replaced. A key that is in the data directory already stays as it is and is not printed.
    """
    if worker and not systemd:
        raise ConfigError("--worker is about the unit: it needs --systemd.")
    made = _make(host, port, data_dir, "worker" if worker else "serve", with_unit=systemd)
    if as_json:
        create_output().print_json(_as_json(made))
        return
    for line in _report(made):
        typer.echo(line)
    for name in ("STEADYHAND_API_KEY", "API_BEARER_TOKEN"):
        if os.environ.get(name) or os.environ.get(f"{name}_FILE"):
            create_output().print_note(
                f"{name} is set here: a service that has it does not use this key.", "yellow"
            )


def _make(host: str, port: int, data_dir: Path | None, role: Role, *, with_unit: bool) -> _Made:
    from steadyhand import serve  # noqa: PLC0415  # heavy: only for this command
    from steadyhand.config.settings import load_settings  # noqa: PLC0415
    from steadyhand.config.starter_file import starter_file  # noqa: PLC0415
    from steadyhand.serve.wiring import load_admin_key  # noqa: PLC0415

    config, unit = Path.cwd() / FILE_NAME, Path.cwd() / UNIT_NAME if with_unit else None
    for path in (config, unit):
        if path is not None and os.path.lexists(path):
            raise ConfigError(f"{path.name} is here already and stays as it is. Nothing was written.")
    configured = os.environ.get("STEADYHAND_DATA_DIR")
    chosen = data_dir or (Path(configured) if configured else default_data_dir(os.environ))
    # The variables of this shell are not those of the service.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("STEADYHAND_")}
    with _new_files() as write:
        write(config, starter_file(chosen.absolute(), host, port))
        settings = load_settings(config, environ=environ)
        if unit is not None:
            write(unit, systemd_unit(_installation(config, settings, role)))
        serve.create_data_dir(settings)
        key_file = settings.data_dir / "admin.key"
        is_new = not key_file.exists()
        secret, _ = load_admin_key(settings.data_dir)
    return _Made(config, settings.data_dir, unit, key_file, secret if is_new else None, role)


def _installation(config: Path, settings: Any, role: Role) -> Installation:
    service = settings.tables.service
    program = Path(sys.executable).with_name("steadyhand")
    command = [str(program)] if program.is_file() else [sys.executable, "-m", "steadyhand"]
    user = pwd.getpwuid(os.geteuid()).pw_name
    is_root = os.geteuid() == 0
    return Installation(
        command,
        config,
        settings.data_dir,
        user,
        is_root,
        service.drain_seconds,
        service.reattach_seconds,
        role,
        find_systemd_version(),
    )


@contextmanager
def _new_files() -> Iterator[Any]:
    """Yield a function that writes a new file. If the block fails, its files are removed."""
    written: list[Path] = []

    def write(path: Path, text: str) -> None:
        with path.open("x", encoding="utf-8") as file:
            written.append(path)
            file.write(text)

    try:
        yield write
    except BaseException:  # also Ctrl-C leaves nothing half made
        for path in written:
            path.unlink(missing_ok=True)
        raise


def _as_json(made: _Made) -> dict[str, Any]:
    return {
        "object": "installation",
        "config": str(made.config),
        "data_dir": str(made.data_dir),
        "unit": None if made.unit is None else str(made.unit),
        "key_file": str(made.key_file),
        "key": made.secret,
    }


def _report(made: _Made) -> Iterator[str]:
    yield f"Written: {made.config.name}"
    if made.unit is not None:
        yield f"Written: {made.unit.name}"
    yield ""
    if made.secret is not None:
        yield from _wrapped("The key with all rights, shown this once. Commands in this directory find it in")
        yield f"  {made.key_file}"
        yield ""
        yield f"  {made.secret}"
    else:
        yield "The key that was there before stays as it is:"
        yield f"  {made.key_file}"
    yield ""
    yield "Next:"
    yield "  export ANTHROPIC_API_KEY=...     # the model's credential"
    yield "  steadyhand doctor                # is anything missing?"
    yield f"  steadyhand {made.role}"
    if made.unit is not None:
        yield ""
        yield from _wrapped(
            f"As a systemd service, with the credential in steadyhand.env beside {FILE_NAME} (mode 0600):"
        )
        yield f"  sudo cp {shlex.quote(made.unit.name)} /etc/systemd/system/"
        yield "  sudo systemctl daemon-reload"
        yield "  sudo systemctl enable --now steadyhand"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH)
