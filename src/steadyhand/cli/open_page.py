"""`steadyhand open`: the operations page, signed in."""

import html
import os
import tempfile
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from steadyhand.cli import client_options
from steadyhand.cli.app import app
from steadyhand.cli.client_options import Server
from steadyhand.cli.common_options import AsJson, create_output


@app.command("open")
def open_page(
    *,
    browser: Annotated[
        bool, typer.Option("--browser", help="Open the link in the browser of this machine.")
    ] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Print a link to the operations page that signs a browser in with this key.

    The link works once, within a minute. Its session ends when the key is revoked or rotated.
    """
    output = create_output()
    with client_options.open_client(server) as client:
        url = client.create_sign_in_link()
    if as_json:
        output.print_json({"object": "sign_in_link", "url": url})
    else:
        typer.echo(url)
    if browser and not open_in_browser(url):
        output.print_note("No browser could be started; open the link yourself.", "yellow")


def open_in_browser(url: str) -> bool:
    """Open a link in a browser and return True if one was started.

    The link stands in a file of this user alone, since every user can read the arguments of a process. The file stays:
    a browser reads it some time after this returns. The link in it is worth nothing after its first use.
    """
    handle, name = tempfile.mkstemp(prefix="steadyhand-open-", suffix=".html")
    target = html.escape(url, quote=True)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(
            f'<!doctype html><meta http-equiv="refresh" content="0;url={target}"><title>Steadyhand</title>'
        )
    return webbrowser.open(Path(name).as_uri())
