"""The tables of docs/decisions/queue-engine.md, from the results beside it. It imports no engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.page_marks import between_marks

Figures = Mapping[str, Any]


def write_page(page: Path, results: Figures) -> None:
    """Write the tables between the marks of the page."""
    page.write_text(with_figures(page.read_text("utf-8"), results), "utf-8")


def with_figures(text: str, results: Figures) -> str:
    """Return the page with these figures."""
    for name, content in {
        "machine": _machine(results),
        "settings": _settings(results["settings"]),
        "faults": _faults(results["scenarios"], results["context"]["versions"]),
        "outages": _outages(results["scenarios"]),
    }.items():
        text = between_marks(text, name, content)
    return text


def _machine(results: Figures) -> str:
    context = results["context"]
    versions = ", ".join(f"{name} {version}" for name, version in context["versions"].items())
    busy = " Other work went on beside it: its load was" if context["busy"] else " Its load was"
    return (
        f"Measured on {context['cores']} cores ({context['processor']}, {context['memory']}), Linux "
        f"{context['kernel']}, Python {context['python']}, PostgreSQL {context['postgres'].split()[0]}, {versions}, "
        f"commit {context['commit']}.{busy} {context['load']:g} when it began."
    )


def _settings(settings: Figures) -> str:
    lines = ["| setting | seconds |", "|---|--:|"]
    names = {
        "heartbeat": "a worker writes its heartbeat every",
        "dead_after": "it is dead without one for",
        "look_every": "the reaper looks every",
        "pool_timeout": "a statement waits for a connection for at most",
        "idle_poll": "an idle worker looks for jobs every",
        "graceful": "a worker that is told to stop waits for its jobs for",
    }
    return "\n".join([*lines, *(f"| {text} | {settings[name]:g} |" for name, text in names.items())])


def _faults(scenarios: Figures, versions: Mapping[str, str]) -> str:
    engines = list(scenarios["start"])
    lines = [
        "| | n | " + " | ".join(f"{engine} {versions[engine]}" for engine in engines) + " |",
        "|---|--:|" + "---|" * len(engines),
    ]
    for scenario, text, figure in _ROWS:
        of_engine = scenarios[scenario]
        counts = "/".join(dict.fromkeys(str(of_engine[engine]["n"]) for engine in engines))
        cells = " | ".join(figure(of_engine[engine]) for engine in engines)
        lines.append(f"| {text} | {counts} | {cells} |")
    return "\n".join(lines)


def _outages(scenarios: Figures) -> str:
    variants = list(scenarios["outage_10"])
    lines = ["| | " + " | ".join(variants) + " |", "|---|" + "---|" * len(variants)]
    for scenario, seconds in (("outage_10", 10), ("outage_45", 45)):
        for text, figure in _OUTAGE_ROWS:
            cells = " | ".join(figure(scenarios[scenario][variant]) for variant in variants)
            lines.append(f"| {seconds} s: {text} | {cells} |")
    return "\n".join(lines)


def _seconds(value: float | None) -> str:
    return "**never**" if value is None else f"{value:g} s"


def _states(states: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in sorted(states.items()))


def _again(figures: Figures) -> str:
    if not figures["started_again"]:
        return f"0 of {figures['n']}"
    return f"**{figures['started_again']} of {figures['n']}**, one {figures['most_starts']} times"


def _live(figures: Figures) -> str:
    return f"{figures['state']}, started {'once' if figures['starts'] == 1 else str(figures['starts']) + ' times'}"


def _frozen_runs(figures: Figures) -> str:
    if figures["starts"] == 1:
        return "1"
    return f"**{figures['starts']}**" + (", both at once" if figures["at_once"] else "")


def _thawed(figures: Figures) -> str:
    work = "it worked on" if figures["worked_on"] else "it did not work on"
    states = figures["state_before"], figures["state_after"]
    state = (
        f"the job stays {states[0]}"
        if states[0] == states[1]
        else f"the job goes from {states[0]} to {states[1]}"
    )
    takes = "takes new jobs" if figures["thawed_takes_jobs"] else "takes no jobs"
    return f"{work}; {state}; it {takes}"


def _stopped(figures: Figures, name: str) -> str:
    after, state = figures[f"{name}_after"], figures[f"{name}_state"]
    return f"{'does not end' if after is None else f'ends after {after:g} s'}, job {state}"


def _transaction(figures: Figures) -> str:
    return "yes" if figures["rolled_back_is_gone"] and figures["committed_starts"] else "**no**"


def _end(state: str, wanted: str) -> str:
    return state if state == wanted else f"**{state}**"


_ROWS: Sequence[tuple[str, str, Callable[[Figures], str]]] = (
    (
        "start",
        "a job starts after it was enqueued, p50 / p99",
        lambda f: f"{f['p50_ms']:g} / {f['p99_ms']:g} ms",
    ),
    ("idle", "statements a second of an idle worker", lambda f: f"{f['statements_per_s']:.2g}"),
    ("idle", "its share of a core", lambda f: f"{f['processor_percent']:.2g} %"),
    ("transaction", "in the caller's transaction", _transaction),
    (
        "cancel",
        "a job learns of its cancellation after, p50 / most",
        lambda f: f"{f['p50_ms']:g} / {f['max_ms']:g} ms",
    ),
    ("live", "a job three times as long as a dead worker is waited for", _live),
    (
        "kills",
        "worker killed: noticed after, p50 / most",
        lambda f: f"{f['noticed_p50']:g} / {f['noticed_max']:g} s",
    ),
    ("kills", "jobs that were run again", _again),
    ("kills", "states in the end", lambda f: _states(f["states"])),
    ("freeze", "worker frozen for 60 s: noticed after", lambda f: _seconds(f["noticed"])),
    ("freeze", "runs of its job", _frozen_runs),
    ("freeze", "after it thaws", _thawed),
    ("stop", "SIGTERM beside a job of 8 s", lambda f: _stopped(f, "short")),
    ("stop", "SIGTERM beside a job of 40 s", lambda f: _stopped(f, "long")),
)
_OUTAGE_ROWS: Sequence[tuple[str, Callable[[Figures], str]]] = (
    ("job that ended while it was away", lambda f: _end(f["ended_during"], "done")),
    ("job that was at work all the time", lambda f: _end(f["at_work"], "done")),
    ("new job starts after its return", lambda f: _seconds(f["new_job_after"])),
    (
        "workers that ended",
        lambda f: f"{sum(code is not None for code in f['exit_codes'])} of {len(f['exit_codes'])}",
    ),
)
