"""Writes measurements into the page on performance: `python -m bench.publish RESULTS.json .. docs/performance.md`.

RESULTS.json is what `python -m bench --json` printed, or the `results.json` of the page, to keep its other figures. Of
several, each replaces what the ones before measured as well, and the page names the run of each figure by its commit.
The page keeps its text; the tables between its marks are written anew, and the plots beside it. `make bench-publish`
does both.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.comparison import Cell, table
from bench.growth import GROWTH
from bench.page_marks import between_marks

_COLORS = ("#6b7280", "#c2410c", "#1d4ed8", "#0e9f6e", "#7c3aed", "#b45309")
_WIDTH, _HEIGHT = 7.5, 3.2
_COMPARISON = "the ways to ask an agent"


def main() -> int:
    """Write the page and its plots."""
    *files, page = (Path(each) for each in sys.argv[1:])
    results = merged([run for each in files for run in runs_of(json.loads(each.read_text()))])
    # The same figures give the same file: no date and no random ids.
    mpl.rcParams.update({"svg.hashsalt": "steadyhand", "svg.fonttype": "none", "font.size": 9})
    folder = page.with_suffix("")
    folder.mkdir(exist_ok=True)
    cells = [Cell(**cell) for cell in results["comparison"]]
    plots = [*_plot_comparison(folder, cells), *_plot_series(folder, results["series"])]
    text = page.read_text(encoding="utf-8")
    for name, content in {
        "machine": _machines(results["runs"]),
        "comparison": table(cells),
        "rows": _rows(results["rows"]),
        "plots": "\n".join(f"![{title}]({folder.name}/{file})" for file, title in plots),
    }.items():
        text = between_marks(text, name, content)
    page.write_text(text, encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def runs_of(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return the runs in a document: it is one, or the results of several that were published."""
    if "context" in document:
        return [document]
    runs = []
    for number, context in enumerate(document["runs"]):
        rows = [row for row in document["rows"] if f"`{row['name']}`" in context["names"]]
        has_comparison = _COMPARISON in context["names"] or len(document["runs"]) == 1
        runs.append(
            {
                "context": {name: value for name, value in context.items() if name != "names"},
                "rows": rows,
                "series": document["series"] if number == 0 else [],
                "comparison": document["comparison"] if has_comparison else [],
            }
        )
    return runs


def merged(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return the results of several runs as one. `runs` in it has the context of each, and the names of its figures."""
    found: dict[str, dict[str, tuple[int, Any]]] = {"rows": {}, "series": {}}
    last_comparison = max(number for number, run in enumerate(runs) if run["comparison"])
    for number, run in enumerate(runs):
        for part, of_part in found.items():
            of_part.update({each["name"]: (number, each) for each in run[part]})
    names: list[list[str]] = [[] for _ in runs]
    for number, row in found["rows"].values():
        names[number].append(f"`{row['name']}`")
    names[last_comparison].append(_COMPARISON)
    return {
        "runs": [
            {**run["context"], "names": of_run} for run, of_run in zip(runs, names, strict=True) if of_run
        ],
        **{part: [each for _, each in of_part.values()] for part, of_part in found.items()},
        "comparison": runs[last_comparison]["comparison"],
    }


def _machines(runs: Sequence[Mapping[str, Any]]) -> str:
    if len(runs) == 1:
        return _machine(runs[0])
    names: dict[str, list[str]] = {}
    for run in runs:
        names.setdefault(_machine(run), []).extend(run["names"])
    return "\n".join(f"- {machine} It has {', '.join(found)}." for machine, found in names.items())


def _machine(context: Mapping[str, Any]) -> str:
    busy = " It was busy when it began." if context["busy"] else ""
    return (
        f"Measured on {context['cores']} cores ({context['processor']}, {context['memory']}), Linux "
        f"{context['kernel']}, Python {context['python']}, CLI {context['cli']}, commit {context['commit']}.{busy}"
    )


def _rows(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = ["| row | ours | beside | figure | goal | |", "|---|--:|--:|--:|--:|---|"]
    for row in rows:
        unit = row["unit"]
        is_ratio = "ratio" in row
        figure = f"{row['ratio']:.3g}" if is_ratio else f"{row['added']:+.2f} {unit}"
        goal = f"{row['direction']} {row['goal']:g}" + ("" if is_ratio else f" {unit}")
        lines.append(
            f"| `{row['name']}` | {row['ours']:,.1f} {unit} | {row['theirs']:,.1f} {unit} | {figure} | {goal} "
            f"| {'met' if row['met'] else '**missed**'}: {GROWTH[row['name']]} |"
        )
    return "\n".join(lines)


def _plot_comparison(folder: Path, cells: Sequence[Cell]) -> Iterable[tuple[str, str]]:
    ways = list(dict.fromkeys(cell.way for cell in cells))
    callers = sorted({cell.callers for cell in cells})
    for field, title, least in (
        ("first_p50", "Time to the first text, p50, ms", 10),
        ("whole_p50", "Time to the whole answer, p50, ms", 10),
        ("processor", "Processor time for a request, s", 0.01),
        ("memory", "Peak memory for a request, MB", 1),
    ):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        width = 0.8 / len(ways)
        for number, way in enumerate(ways):
            values = {cell.callers: getattr(cell, field) for cell in cells if cell.way == way}
            places = [place + (number - (len(ways) - 1) / 2) * width for place in range(len(callers))]
            bars = axes.bar(
                places,
                [max(least, values[each]) for each in callers],
                width,
                label=way,
                color=_COLORS[number],
            )
            axes.bar_label(bars, [_short(values[each]) for each in callers], fontsize=7, padding=1)
        axes.set_yscale("log")
        axes.set_ylim(bottom=least)
        axes.margins(y=0.3)
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.set_xticks(range(len(callers)), [f"{each} at once" for each in callers])
        axes.set_title(title, loc="left")
        axes.legend(frameon=False, ncols=5, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1))
        yield _save(figure, folder, field.replace("_", "-")), title


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _plot_series(folder: Path, series: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    for each in series:
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.subplots()
        for number, (line, points) in enumerate(each["lines"].items()):
            axes.plot(*zip(*points, strict=True), "o-", label=line, color=_COLORS[number % len(_COLORS)])
        axes.set_xscale("symlog")
        axes.set_ylim(bottom=0)
        axes.set_xlabel(each["x"])
        axes.set_ylabel(each["unit"])
        axes.set_title(each["what"], loc="left")
        axes.legend(frameon=False, fontsize=8)
        yield _save(figure, folder, each["name"]), each["what"]


def _save(figure: Figure, folder: Path, name: str) -> str:
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return f"{name}.svg"


if __name__ == "__main__":
    sys.exit(main())
