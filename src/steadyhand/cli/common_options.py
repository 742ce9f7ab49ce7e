"""The options that every command has, and the output of a command. It loads no HTTP client."""

from pathlib import Path
from typing import Annotated

import typer

from steadyhand.cli.app import CONFIG_OPTION
from steadyhand.cli.console import CommandOutput
from steadyhand.config.client import ClientSettings
from steadyhand.config.client import load_client_settings as client_settings

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def global_config_file() -> Path | None:
    """Return the file of the program's own `--config`, before the command."""
    return CONFIG_OPTION.get()


def load_settings() -> ClientSettings:
    """Return the client settings of the configuration file and the environment."""
    return client_settings(config_file=global_config_file())


def create_output() -> CommandOutput:
    """Return the output streams of this command."""
    return CommandOutput(no_color=load_settings().no_color)
