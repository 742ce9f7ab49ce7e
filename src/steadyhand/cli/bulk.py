"""Cancel, retry or resume all jobs of a filter: ask first, then call the service until all are changed."""

import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from steadyhand.cli.client_options import list_rows
from steadyhand.cli.console import CommandOutput
from steadyhand.cli.exit_codes import ExitCode
from steadyhand.cli.key_names import resolve_key_id
from steadyhand.cli.sanitize import as_mapping, first_line, one_line
from steadyhand.cli.tables import bulk_table
from steadyhand.cli.times import parse_moment
from steadyhand.client import BulkResult, Client
from steadyhand.clock import utc_now
from steadyhand.errors import InvalidRequest

JobOrFilter = Annotated[
    str | None,
    typer.Argument(
        metavar="[JOB]",
        help="The job's id, or a beginning of it; without it, all jobs that the options select.",
    ),
]
States = Annotated[
    list[str] | None, typer.Option("--state", metavar="STATE", help="Jobs in this state; may be repeated.")
]
AgentFilter = Annotated[str | None, typer.Option("--agent", metavar="NAME", help="Jobs of this agent.")]
WorkspaceFilter = Annotated[
    str | None, typer.Option("--workspace", metavar="NAME", help="Jobs in this workspace.")
]
KeyFilter = Annotated[
    str | None,
    typer.Option("--key", metavar="KEY", help="Jobs that this key submitted: its id, or its name."),
]
Search = Annotated[
    str | None,
    typer.Option(
        "--search", metavar="WORDS", help='Jobs with these words, or a "phrase", in title or prompt.'
    ),
]
MetadataFilter = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="NAME=VALUE", help="Jobs with this metadata; may be repeated."),
]
Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Jobs submitted after then: today, 24h, 7d, a day, a time."),
]
Until = Annotated[str | None, typer.Option("--until", metavar="TIME", help="Jobs submitted before then.")]
All = Annotated[bool, typer.Option("--all", help="All jobs, without another option.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only list the jobs that would be changed.")]

_SHOWN = 20
"""The jobs that are listed before the question; of more there is the number alone."""

Call = Callable[..., BulkResult]


@dataclass(frozen=True, slots=True)
class Filters:
    """The options of a command that select jobs."""

    state: list[str] | None
    agent: str | None
    workspace: str | None
    key: str | None
    search: str | None
    metadata: list[str] | None
    since: str | None
    until: str | None
    all: bool

    @property
    def is_empty(self) -> bool:
        """True without any option."""
        return not any((getattr(self, name) not in (None, [], False)) for name in self.__slots__)

    def body(self, client: Client) -> dict[str, Any]:
        """Return the fields of the request."""
        now = utc_now()
        fields = {
            "state": self.state or None,
            "agent": self.agent,
            "workspace": self.workspace,
            "api_key": None if self.key is None else resolve_key_id(client, self.key),
            "q": self.search,
            "metadata": parse_metadata(self.metadata or []) or None,
            "created_after": None if self.since is None else parse_moment(self.since, "--since", now),
            "created_before": None if self.until is None else parse_moment(self.until, "--until", now),
            "all": self.all or None,
        }
        return {name: value for name, value in fields.items() if value is not None}


def parse_metadata(pairs: Sequence[str]) -> dict[str, str]:
    """Return names and values of `NAME=VALUE`; raise `InvalidRequest` for another form."""
    metadata = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise InvalidRequest(f"--metadata {one_line(pair, 60)} is not of the form NAME=VALUE.")
        metadata[name] = value
    return metadata


def check_target(job: str | None, filters: Filters, *, dry_run: bool) -> None:
    """Raise `InvalidRequest` unless there is either a job or a filter."""
    if job is None and filters.is_empty:
        raise InvalidRequest("Name a job, or select jobs by --state, --agent and the like, or by --all.")
    if job is not None and not filters.is_empty:
        raise InvalidRequest("Use a job or options that select jobs, not both.")
    if job is not None and dry_run:
        raise InvalidRequest("--dry-run is for options that select jobs.")


def change_jobs(
    output: CommandOutput,
    call: Call,
    body: Mapping[str, Any],
    verb: str,
    *,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Change all jobs of a filter and exit: 0 if all were changed, 75 if the service stopped before, else 1.

    `verb` is the operation in the imperative.
    """
    as_of = None
    if dry_run or not yes:
        planned = _call_for_all(call, {**body, "dry_run": True})
        if dry_run:
            _print_plan(output, planned, verb, as_json=as_json)
            return
        _confirm(output, planned, verb)
        # What came or was changed since the question is not part of the answer.
        as_of = planned["as_of"]
    result = _call_for_all(call, {**body, **({} if as_of is None else {"as_of": as_of})})
    if as_json:
        output.print_json(result)
    else:
        _print_result(output, result, verb)
    if result["stopped"] is not None:
        raise typer.Exit(int(ExitCode.TRY_LATER))
    if result["failed"]:
        raise typer.Exit(int(ExitCode.FAILED))


def _call_for_all(call: Call, body: Mapping[str, Any]) -> dict[str, Any]:
    """Call the service until all jobs of the filter had their turn, or it stops; return one result of all calls."""
    items: list[dict[str, Any]] = []
    page: Mapping[str, Any] = {}
    as_of, cursor = body.get("as_of"), None
    while True:
        fields = {"as_of": as_of, "cursor": cursor}
        page = call(**body, **{k: v for k, v in fields.items() if v is not None and k not in body}).document
        items += list_rows(page)
        as_of = as_of or page.get("as_of")
        cursor = page.get("next_cursor") if page.get("has_more") and not page.get("stopped") else None
        if cursor is None:
            break
    failed = sum(1 for item in items if item.get("error"))
    return {
        "object": "list",
        "data": items,
        "dry_run": bool(body.get("dry_run")),
        "as_of": as_of,
        "matched": len(items),
        "changed": len(items) - failed,
        "failed": failed,
        "stopped": page.get("stopped"),
    }


def _confirm(output: CommandOutput, planned: Mapping[str, Any], verb: str) -> None:
    """Ask on the terminal; exit unless the answer is yes."""
    if not planned["changed"]:
        _print_plan(output, planned, verb, as_json=False)
        raise typer.Exit(int(ExitCode.FAILED if planned["failed"] else ExitCode.COMPLETED))
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InvalidRequest(
            f"Without a terminal, {verb} of {_count(planned['changed'])} needs --yes. --dry-run lists them."
        )
    _print_jobs(output, planned)
    question = f"{verb.capitalize()} {_count(planned['changed'])} ({_states(planned)})?"
    if not typer.confirm(question, default=False, err=True):
        output.print_note("Nothing was changed.")
        raise typer.Exit(int(ExitCode.COMPLETED))


def _print_plan(output: CommandOutput, planned: Mapping[str, Any], verb: str, *, as_json: bool) -> None:
    if as_json:
        output.print_json(planned)
        return
    if planned["data"]:
        output.print_renderable(bulk_table(planned["data"]))
    states = f" ({_states(planned)})" if planned["changed"] else ""
    output.print_note(f"{verb} would change {_count(planned['changed'])}{states}.")
    if planned["failed"]:
        output.print_note(
            f"It would not change {_count(planned['failed'])}; the reason is in the table.", "yellow"
        )


def _print_jobs(output: CommandOutput, planned: Mapping[str, Any]) -> None:
    rows = planned["data"]
    if len(rows) <= _SHOWN:
        output.err.print(bulk_table(rows))
    elif planned["failed"]:
        output.print_note(f"{_count(planned['failed'])} could not be changed; --dry-run lists all.", "yellow")


def _print_result(output: CommandOutput, result: Mapping[str, Any], verb: str) -> None:
    for item in result["data"]:
        error = as_mapping(item.get("error"))
        if error:
            reason = f"{one_line(error.get('code'), 40)}: {first_line(error.get('detail') or '', 160)}"
            output.print_note(f"{one_line(item.get('id'), 20)}  {reason}", "red")
    output.print_note(f"{verb}: {_count(result['changed'])} changed, {result['failed']} failed.")
    stop = as_mapping(result.get("stopped"))
    if stop:
        output.print_note(
            f"It stopped before the last job: {first_line(stop.get('detail') or '', 160)}", "yellow"
        )
        output.print_note(
            f"Send the command again in {one_line(stop.get('retry_after'), 10)} s for the rest."
        )


def _states(planned: Mapping[str, Any]) -> str:
    counts = Counter(one_line(item.get("state"), 20) for item in planned["data"] if not item.get("error"))
    return ", ".join(f"{count} {state}" for state, count in counts.most_common())


def _count(number: int) -> str:
    return f"{number} job" if number == 1 else f"{number} jobs"
