"""The command line. All commands but `serve`, `doctor`, `config` and `demo` are HTTP clients of a service.

Exit codes are those of docs/cli.md (`exit_codes`). Answers go to stdout, progress and errors to stderr.
"""

__all__ = ["main"]


def main() -> None:
    """Run the command of the arguments and exit with its code."""
    from steadyhand.cli.app import app  # noqa: PLC0415

    app(prog_name="steadyhand")
