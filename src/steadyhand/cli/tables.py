"""Tables and pages of the command line. All their text comes from outside and is sanitized."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from steadyhand.agents import DEFAULT_RUNNER
from steadyhand.cli.columns import Column, FittedTable
from steadyhand.cli.progress import STATE_STYLES, run_seconds
from steadyhand.cli.sanitize import (
    as_mapping,
    display_usd,
    first_line,
    format_age,
    format_branch,
    format_changes,
    format_count,
    format_duration,
    format_turns,
    one_line,
    parse_time,
    sanitize,
)
from steadyhand.clock import utc_now

_DIFF_STYLES = (
    ("+++", "bold"),
    ("---", "bold"),
    ("diff ", "bold"),
    ("@@", "cyan"),
    ("+", "green"),
    ("-", "red"),
)

_MAX_NAMED_JOBS = 3
_PLAIN_FIELDS = (
    ("title", "title"),
    ("agent", "agent"),
    ("runner", "runner"),
    ("model", "model"),
    ("workspace", "workspace"),
    ("ref", "ref"),
    ("commit", "commit"),
    ("run", "run"),
    ("created", "created_at"),
    ("started", "started_at"),
    ("finished", "finished_at"),
)


def _state_text(job: Mapping[str, Any]) -> Text:
    state = one_line(job.get("state", "?"), 20)
    return Text(state, style=STATE_STYLES.get(state, ""))


def _cell(value: object, limit: int = 60) -> Text:
    return Text("-" if value is None else one_line(value, limit))


def jobs_table(
    jobs: Iterable[Mapping[str, Any]], key_names: Mapping[str, str] | None = None, now: datetime | None = None
) -> RenderableType:
    """Return the table of jobs, one line each; `key_names` are the names of keys by their ids."""
    now, key_names, jobs = now or utc_now(), key_names or {}, list(jobs)
    reasons: dict[str, list[str]] = {}
    has_runners = _has_other_runners(jobs)
    table = FittedTable(
        Column("ID"),
        Column("STATE"),
        Column("AGENT", least_width=8, drop_rank=2),
        *([Column("RUNNER", drop_rank=6)] if has_runners else []),
        Column("KEY", least_width=8, drop_rank=4),
        Column("AGE", drop_rank=3),
        Column("TIME", right=True, drop_rank=1),
        Column("COST", right=True),
        Column("TITLE", least_width=16, drop_rank=5),
    )
    for job in jobs:
        created, elapsed = parse_time(job.get("created_at")), _elapsed_seconds(job, now)
        table.add_row(
            _cell(job.get("id"), 20),
            _state_text(job),
            _cell(job.get("agent"), 24),
            *([_cell(job.get("runner"), 24)] if has_runners else []),
            _key_cell(job.get("api_key_id"), key_names),
            Text(format_age((now - created).total_seconds()) if created else "-"),
            Text(format_duration(elapsed) if elapsed is not None else "-"),
            Text(display_usd(as_mapping(job.get("cost")).get("usd", "0"))),
            Text(first_line(job.get("title") or job.get("prompt_start") or job.get("prompt") or "", 80)),
        )
        if (reason := _queue_reason(job)) is not None:
            reasons.setdefault(reason, []).append(one_line(job.get("id", "?"), 20))
    return Group(table, *(_reason_text(reason, ids) for reason, ids in reasons.items()))


def _has_other_runners(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Return True if a job or an agent has another runner than most have: only then is there a column for it."""
    return any(row.get("runner") not in (None, DEFAULT_RUNNER) for row in rows)


def _queue_reason(job: Mapping[str, Any]) -> str | None:
    """Return the reason why no node can take a job that waits, or None."""
    detail = as_mapping(job.get("queue_reason")).get("detail")
    return None if detail is None else one_line(detail, 400)


def _reason_text(reason: str, ids: Sequence[str]) -> Text:
    names = ", ".join(ids[:_MAX_NAMED_JOBS])
    more = f" and {len(ids) - _MAX_NAMED_JOBS} more" if len(ids) > _MAX_NAMED_JOBS else ""
    return Text(
        f"! {names}{more}: no node can take {'it' if len(ids) == 1 else 'them'}. {reason}", style="yellow"
    )


def bulk_table(items: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of the jobs of a filter, with the reason beside those that cannot be changed."""
    table = FittedTable(
        Column("ID"),
        Column("STATE"),
        Column("RUN", right=True, drop_rank=4),
        Column("AGENT", least_width=8, drop_rank=3),
        Column("TITLE", least_width=16, drop_rank=1),
        Column("NOT CHANGED", least_width=16, drop_rank=2),
    )
    for item in items:
        error = as_mapping(item.get("error"))
        table.add_row(
            _cell(item.get("id"), 20),
            _state_text(item),
            _cell(item.get("run"), 6),
            _cell(item.get("agent"), 24),
            Text(first_line(item.get("title") or "", 60)),
            Text(first_line(error.get("detail") or "", 80), style="yellow"),
        )
    return table


def _key_cell(key_id: object, names: Mapping[str, str]) -> Text:
    return _cell(names.get(str(key_id), key_id), 30)


def _elapsed_seconds(job: Mapping[str, Any], now: datetime) -> float | None:
    started = parse_time(job.get("started_at"))
    return (now - started).total_seconds() if job.get("state") == "running" and started else run_seconds(job)


def agents_table(agents: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of agents with their limits, and below it why fewer processes wait than an agent asks for."""
    rows = list(agents)
    has_warm = any(agent.get("warm") is not None for agent in rows)
    has_runners = _has_other_runners(rows)
    table = FittedTable(
        Column("NAME"),
        *([Column("RUNNER", drop_rank=5)] if has_runners else []),
        Column("MODEL", least_width=8, drop_rank=1),
        Column("WORKSPACE", least_width=9, drop_rank=2),
        Column("BUDGET", right=True),
        Column("TIMEOUT", right=True),
        *([Column("WARM", right=True), Column("HITS", right=True, drop_rank=4)] if has_warm else []),
        Column("DESCRIPTION", least_width=16, drop_rank=3),
    )
    for agent in rows:
        seconds = agent.get("timeout_seconds")
        table.add_row(
            _cell(agent.get("name", agent.get("id"))),
            *([_cell(agent.get("runner"), 24)] if has_runners else []),
            _cell(agent.get("model")),
            _cell(agent.get("workspace")),
            Text(display_usd(agent["budget_usd"]) if agent.get("budget_usd") is not None else "-"),
            Text(format_duration(float(seconds)) if isinstance(seconds, int | float) else "-"),
            *(_warm_cells(as_mapping(agent.get("warm"))) if has_warm else ()),
            Text(first_line(agent.get("description") or "", 80)),
        )
    return Group(table, *(_shortage_text(agent) for agent in rows if _shortage(agent)))


def _warm_cells(warm: Mapping[str, Any]) -> Iterable[Text]:
    """Return the cells of an agent's waiting processes: how many of those asked for, and the share of jobs with one."""
    if not warm:
        return Text("-"), Text("-")
    waiting, configured = warm.get("waiting"), warm.get("configured")
    is_short = isinstance(waiting, int) and isinstance(configured, int) and waiting < configured
    hits, misses = warm.get("hits"), warm.get("misses")
    counted = f"{hits}/{hits + misses}" if isinstance(hits, int) and isinstance(misses, int) else "-"
    count = f"{one_line(waiting, 8)}/{one_line(configured, 8)}"
    return Text(count, style="yellow" if is_short else ""), Text(counted)


def _shortage(agent: Mapping[str, Any]) -> Mapping[str, Any]:
    return as_mapping(as_mapping(agent.get("warm")).get("shortage"))


def _shortage_text(agent: Mapping[str, Any]) -> Text:
    name, detail = one_line(agent.get("name", "?"), 60), one_line(_shortage(agent).get("detail", ""), 300)
    return Text(f"! {name}: fewer processes wait than configured. {detail}", style="yellow")


def workspaces_table(workspaces: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of workspaces."""
    table = FittedTable(
        Column("NAME"),
        Column("REPOSITORY", least_width=20, drop_rank=2),
        Column("REF", least_width=8, drop_rank=1),
        Column("MODE"),
        Column("TRUST"),
    )
    for each in workspaces:
        table.add_row(
            _cell(each.get("name", each.get("id"))),
            _cell(each.get("repository"), 120),
            _cell(each.get("ref")),
            _cell(each.get("mode")),
            _cell(each.get("trust")),
        )
    return table


def keys_table(keys: Iterable[Mapping[str, Any]], now: datetime | None = None) -> RenderableType:
    """Return the table of keys, without the limits that are not set."""
    now = now or utc_now()
    table = FittedTable(
        Column("ID"),
        Column("NAME", least_width=8),
        Column("SCOPES", least_width=8, drop_rank=2),
        Column("LIMITS", drop_rank=3),
        Column("MADE", drop_rank=1),
        Column("STATE"),
    )
    for key in keys:
        created = parse_time(key.get("created_at"))
        table.add_row(
            _cell(key.get("id"), 20),
            _cell(key.get("name"), 30),
            Text(one_line(" ".join(map(str, key.get("scopes") or ())), 60)),
            Text(one_line(", ".join(_describe_limits(as_mapping(key.get("limits")))) or "-", 120)),
            Text(format_age((now - created).total_seconds()) if created else "-"),
            Text("revoked", style="red")
            if key.get("revoked_at") is not None
            else Text("fixed" if key.get("origin") == "environment" else "good"),
        )
    return table


def deliveries_table(deliveries: Iterable[Mapping[str, Any]], now: datetime | None = None) -> RenderableType:
    """Return the table of deliveries of callbacks, one line each."""
    now = now or utc_now()
    table = FittedTable(
        Column("ID"),
        Column("EVENT", drop_rank=2),
        Column("JOB"),
        Column("RECEIVER", least_width=12, drop_rank=4),
        Column("STATE"),
        Column("TRIES", right=True, drop_rank=1),
        Column("AGE", drop_rank=3),
        Column("ERROR", least_width=12, drop_rank=5),
    )
    for delivery in deliveries:
        created, state = parse_time(delivery.get("created_at")), one_line(delivery.get("state", "?"), 20)
        table.add_row(
            _cell(delivery.get("id"), 40),
            _cell(delivery.get("type"), 20),
            _cell(delivery.get("job_id") or delivery.get("schedule"), 64),
            _cell(delivery.get("endpoint") or delivery.get("receiver"), 60),
            Text(state, style={"delivered": "green", "failed": "red"}.get(state, "")),
            _cell(delivery.get("attempts"), 8),
            Text(format_age((now - created).total_seconds()) if created else "-"),
            _cell(delivery.get("error"), 60),
        )
    return table


def endpoints_table(endpoints: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of endpoints of callbacks, one line each."""
    table = FittedTable(
        Column("NAME"),
        Column("RECEIVER", least_width=16),
        Column("EVENTS", least_width=12, drop_rank=1),
        Column("AGENTS", least_width=8, drop_rank=3),
        Column("BODY", drop_rank=2),
        Column("ORIGIN", drop_rank=4),
    )
    for endpoint in endpoints:
        table.add_row(
            _cell(endpoint.get("name"), 64),
            _cell(endpoint.get("receiver"), 80),
            Text(one_line(", ".join(map(str, endpoint.get("events") or ())), 80)),
            Text(one_line(", ".join(map(str, endpoint.get("agents") or ())) or "all", 80)),
            _cell(endpoint.get("body"), 10),
            _cell(endpoint.get("origin"), 10),
        )
    return table


_LIMIT_FORMATS = (
    ("running_jobs", "{} running"),
    ("queued_jobs", "{} queued"),
    ("requests_per_minute", "{}/min"),
)


def _describe_limits(limits: Mapping[str, Any]) -> Iterable[str]:
    for name, template in _LIMIT_FORMATS:
        if limits.get(name) is not None:
            yield template.format(one_line(limits[name], 12))
    for period in ("day", "month"):
        if (amount := limits.get(f"budget_usd_per_{period}")) is not None:
            yield f"{display_usd(amount)}/{period}"
    if (amount := limits.get("max_budget_usd")) is not None:
        yield f"{display_usd(amount)}/job"
    if (seconds := limits.get("max_timeout_seconds")) is not None:
        yield f"{one_line(seconds, 12)} s/job"
    for name in ("agents", "workspaces", "models"):
        if limits.get(name) is not None:
            yield f"{name}: {' '.join(map(str, limits[name]))}"


def tools_table(
    rows: Iterable[Mapping[str, Any]], groups: Sequence[str], key_names: Mapping[str, str]
) -> RenderableType:
    """Return the table of the calls of tools, with a column for each group."""
    table = FittedTable(
        Column("TOOL", least_width=12),
        *([Column("AGENT", least_width=8)] if "agent" in groups else []),
        *([Column("KEY", least_width=8)] if "api_key" in groups else []),
        *([Column("JOB")] if "job" in groups else []),
        Column("CALLS", right=True),
        Column("FAILED", right=True),
        Column("UNFINISHED", right=True, drop_rank=1),
        Column("TIME", right=True),
    )
    for row in rows:
        seconds, failures = row.get("seconds"), row.get("failures")
        table.add_row(
            _cell(row.get("tool"), 60),
            *([_cell(row.get("agent"), 24)] if "agent" in groups else []),
            *([_key_cell(row.get("api_key_id"), key_names)] if "api_key" in groups else []),
            *([_cell(row.get("job_id"), 20)] if "job" in groups else []),
            _cell(row.get("calls"), 12),
            Text(one_line(failures, 12), style="red" if failures else ""),
            _cell(row.get("unfinished"), 12),
            Text(format_duration(float(seconds)) if isinstance(seconds, int | float) else "-"),
        )
    return table


def usage_table(
    rows: Iterable[Mapping[str, Any]], groups: Sequence[str], key_names: Mapping[str, str] | None = None
) -> RenderableType:
    """Return the table of usage; a cost that may be too low, or is estimated, is marked.

    `key_names` are the names of keys by their ids.
    """
    key_names = key_names or {}
    group_columns = [
        Column("KEY" if group == "api_key" else one_line(group, 20).upper(), least_width=10)
        for group in groups
    ]
    table = FittedTable(
        *group_columns,
        Column("CALLS", right=True, drop_rank=1),
        Column("IN", right=True, drop_rank=2),
        Column("OUT", right=True, drop_rank=3),
        Column("CACHE READ", right=True, drop_rank=4),
        Column("CACHE WRITTEN", right=True, drop_rank=5),
        Column("COST", right=True),
        Column(""),
    )
    for row in rows:
        tokens, cost = as_mapping(row.get("usage")), as_mapping(row.get("cost"))
        marks = (("unpriced", cost.get("priced")), ("incomplete", cost.get("complete")))
        table.add_row(
            *(
                _key_cell(row.get("api_key_id"), key_names) if group == "api_key" else _cell(row.get(group))
                for group in groups
            ),
            Text(one_line(row.get("calls", "?"), 20)),
            *(Text(format_count(tokens.get(f"{name}_tokens"))) for name in _TOKEN_KINDS),
            Text(display_usd(cost.get("usd", "?"))),
            Text(", ".join(label for label, holds in marks if holds is False), style="yellow"),
        )
    return table


_TOKEN_KINDS = ("input", "output", "cache_read_input", "cache_creation_input")


def job_details(job: Mapping[str, Any], activity: Iterable[tuple[str, str]] = ()) -> RenderableType:
    """Return all details of one job; `activity` is that of one that has not ended."""
    details = Table.grid(padding=(0, 2))
    details.add_column(style="dim", no_wrap=True)
    details.add_column(overflow="fold")
    for name, value in _detail_rows(job, activity):
        details.add_row(name, value)
    parts: list[RenderableType] = [details]
    parts += _section("prompt", job.get("prompt"))
    parts += _section("answer", job.get("answer"))
    return Group(*parts)


def _detail_rows(job: Mapping[str, Any], activity: Iterable[tuple[str, str]]) -> Iterable[tuple[str, Text]]:
    yield "job", _cell(job.get("id"), 20)
    yield "state", _state_details(job)
    if (reason := _queue_reason(job)) is not None:
        yield "waits", Text(reason, style="yellow")
    for name, text in activity:
        yield name, Text(text)
    error = as_mapping(job.get("error"))
    if error:
        yield "error", Text(one_line(error.get("message", ""), 1000), style="red")
    for name, key in _PLAIN_FIELDS:
        if job.get(key) is not None:
            yield name, Text(one_line(job[key], 200))
    elapsed = run_seconds(job)
    if elapsed is not None:
        yield "time", Text(format_duration(elapsed))
    yield "usage", Text(_usage_text(as_mapping(job.get("usage"))))
    cost = as_mapping(job.get("cost"))
    yield (
        "cost",
        Text(f"{display_usd(cost.get('usd', '0'))} of at most {display_usd(job.get('budget_usd', '0'))}"),
    )
    for name, key in (("labels", "labels"), ("not on", "not_on_nodes")):
        if job.get(key):
            yield name, Text(one_line(", ".join(map(str, job[key])), 400))
    yield "changes", Text(format_changes(job.get("changes")))
    if (branch := format_branch(job.get("changes"))) is not None:
        yield "branch", Text(branch)
    for warning in job.get("warnings") or ():
        yield "warning", Text(one_line(as_mapping(warning).get("message", warning), 1000), style="yellow")
    for key, value in as_mapping(job.get("metadata")).items():
        yield "metadata", Text(f"{one_line(key, 60)} = {one_line(value, 200)}")


def _state_details(job: Mapping[str, Any]) -> Text:
    state, outcome = _state_text(job), as_mapping(job.get("outcome"))
    if outcome.get("type") not in {None, "success", job.get("state")}:
        state.append(f" ({one_line(outcome['type'], 40)})", style="dim")
    if job.get("parked_until") is not None:
        state.append(f" until {one_line(job['parked_until'], 40)}", style="dim")
    if job.get("queue_position") is not None:
        state.append(f" (number {one_line(job['queue_position'], 10)} in the queue)", style="dim")
    return state


def _usage_text(usage: Mapping[str, Any]) -> str:
    read, written = usage.get("cache_read_input_tokens", 0), usage.get("cache_creation_input_tokens", 0)
    return (
        f"{format_turns(usage.get('turns', 0))}, {format_count(usage.get('input_tokens', 0))} tokens in, "
        f"{format_count(usage.get('output_tokens', 0))} out, {format_count(read)} read from cache, "
        f"{format_count(written)} written to it"
    )


def _section(name: str, text: object) -> list[RenderableType]:
    if not isinstance(text, str) or not text.strip():
        return []
    return [Text(f"\n{name}", style="dim"), Text(sanitize(text).rstrip("\n"))]


def diff_text(patch: str) -> Text:
    """Return a diff with coloured lines."""
    text = Text()
    for line in sanitize(patch).split("\n"):
        style = next((style for start, style in _DIFF_STYLES if line.startswith(start)), "")
        text.append(line + "\n", style=style)
    text.rstrip()
    return text


def checks_text(checks: Iterable[Mapping[str, Any]]) -> Text:
    """Return the checks of `doctor`, one line each, with the remedy below each failed one; `!` marks a lack."""
    text = Text()
    for check in checks:
        passed, lacking = check.get("ok") is True, check.get("warning") is True
        mark, style = ("✗ ", "red") if not passed else ("! ", "yellow") if lacking else ("✓ ", "green")
        text.append(mark, style=style)
        text.append(one_line(check.get("name", ""), 60), style="bold")
        text.append(f"  {one_line(check.get('detail', ''), 300)}\n", style="" if style == "green" else style)
        if (lacking or not passed) and check.get("remedy"):
            text.append(f"  → {one_line(check['remedy'], 600)}\n")
    text.rstrip()
    return text


def settings_table(rows: Iterable[Mapping[str, Any]]) -> RenderableType:
    """Return the table of settings: name, value, and source."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("SETTING", "VALUE", "FROM"):
        table.add_column(column, overflow="fold")
    for row in rows:
        source = one_line(row.get("source", ""), 60)
        style = "dim" if source == "default" else ""
        value = one_line(row.get("value", ""), 200)
        table.add_row(
            Text(one_line(row.get("name", ""), 80)), Text(value, style=style), Text(source, style=style)
        )
    return table
