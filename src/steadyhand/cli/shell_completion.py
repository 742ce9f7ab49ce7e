"""`steadyhand completion`: the script that completes commands and options in a shell."""

from enum import StrEnum
from typing import Annotated

import typer

from steadyhand.cli.app import app

VARIABLE = "_STEADYHAND_COMPLETE"
"""The variable by which the script asks the program for completions."""


class Shell(StrEnum):
    """The shells that have a script."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command()
def completion(shell: Annotated[Shell, typer.Argument(help="The shell.")]) -> None:
    """Print the script that completes commands and options.

    bash: `source <(steadyhand completion bash)` in ~/.bashrc.
    zsh: the same with zsh in ~/.zshrc, after compinit.
    fish: `steadyhand completion fish > ~/.config/fish/completions/steadyhand.fish`.
    """
    from typer import completion as scripts  # noqa: PLC0415  # only this command needs it

    # The name is there and not in the list of those that are exported.
    script = scripts.get_completion_script(  # type: ignore[attr-defined]
        prog_name="steadyhand", complete_var=VARIABLE, shell=shell.value
    )
    typer.echo(script)
