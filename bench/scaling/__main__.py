"""`python -m bench.scaling`: measure, simulate and print; `--publish PAGE` writes the page and its results.

`--simulate PAGE` takes the measured figures of the page and simulates anew.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from bench.scaling.costs import Costs
from bench.scaling.page import results_of, with_figures
from bench.scaling.projection import COMMIT_ELSEWHERE, SIZES, check_points, project


def main() -> int:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument("--publish", type=Path, metavar="PAGE")
    parser.add_argument("--simulate", type=Path, metavar="PAGE")
    options = parser.parse_args()
    page: Path | None = options.publish or options.simulate
    source: Path | None = options.simulate
    results = json.loads(results_of(source).read_text("utf-8")) if source else measured()
    results |= simulated(results)
    if page is None:
        print(json.dumps(results, indent=1))
        return 0
    results_of(page).parent.mkdir(exist_ok=True)
    results_of(page).write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    page.write_text(with_figures(page.read_text("utf-8"), results), "utf-8")
    return 0


def measured() -> dict[str, Any]:
    """Take the points and the costs on this machine."""
    from bench.__main__ import context  # noqa: PLC0415  # only a measurement needs it
    from bench.scaling.measure import measure  # noqa: PLC0415
    from bench.worlds import world  # noqa: PLC0415

    about = {key: value for key, value in context().items() if key != "cli"}
    with world() as where:
        found = measure(where)
    about["postgres"] = found.pop("postgres")
    return {"context": about, **found}


def simulated(results: dict[str, Any]) -> dict[str, Any]:
    """Simulate the measured points, and larger sizes."""
    costs = Costs.of(results["costs"])
    elsewhere = Costs.of({**results["costs"], "commit": COMMIT_ELSEWHERE})
    cores = results["context"].get("cores") or os.cpu_count() or 1
    return {
        "check": check_points(costs, results["points"], results["slots"], cores),
        "projection": [project(elsewhere, agents) for agents in SIZES],
    }


if __name__ == "__main__":
    sys.exit(main())
