"""The command line. All commands but `init`, `serve`, `doctor`, `config` and `demo` are HTTP clients of a service.

Exit codes are those of docs/cli.md (`exit_codes`). Answers go to stdout, progress and errors to stderr.
"""

__all__ = ["main"]


def main() -> None:
    """Run the command of the arguments and exit with its code."""
    import os  # noqa: PLC0415

    from steadyhand.cli.app import app  # noqa: PLC0415

    if "_STEADYHAND_COMPLETE" in os.environ:  # a shell asks for completions
        from typer.completion import completion_init  # type: ignore[attr-defined]  # noqa: PLC0415

        completion_init()
    app(prog_name="steadyhand")
