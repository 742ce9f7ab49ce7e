"""How long a harvest takes: by the size of the tree when nothing changed, and by the number of new files.

Needs root, as the layered checkout does.
"""

from __future__ import annotations

from pathlib import Path

from bench.rows import Row
from bench.sealing import LARGE, SMALL, Repository, by_turns, loop, must_be_root, spread
from bench.worlds import Broken, made_in

NEW_FILES = 5_000
_MAKE_FILES = f"""
i=0
while [ $i -lt {NEW_FILES} ]; do
  d=made/$((i / 100)); [ $((i % 100)) -gt 0 ] || mkdir -p $d
  echo "NUMBER = $i" > $d/file-$i.py
  i=$((i + 1))
done
"""


def measure_unchanged(world: Path, pairs: int) -> Row:
    """Measure the harvest of an unchanged checkout of a large repository beside that of a small one."""
    must_be_root()
    with loop() as runner:
        root = made_in(world, "harvest")
        large, small = Repository(root, LARGE, runner), Repository(root, SMALL, runner)
        figures = by_turns(pairs, lambda: _harvested(large, ":", 0), lambda: _harvested(small, ":", 0))
    what = f"the harvest of {LARGE:,} files of which none changed; beside the same of {SMALL} files"
    return Row("harvest-unchanged", what, "ms", *figures, "at most", 1.3, spread(figures))


def measure_growth(world: Path, pairs: int) -> Row:
    """Measure the harvest of one changed file in a large repository beside the same in a small one."""
    must_be_root()
    script = "echo more >> part-00/folder-000/file-00007.py; echo new > new.txt"
    with loop() as runner:
        root = made_in(world, "harvest")
        large, small = Repository(root, LARGE, runner), Repository(root, SMALL, runner)
        figures = by_turns(pairs, lambda: _harvested(large, script, 2), lambda: _harvested(small, script, 2))
    what = f"the harvest of two changed files among {LARGE:,}; beside the same among {SMALL}"
    return Row("harvest-growth", what, "ms", *figures, "at most", 2.0, spread(figures))


def measure_new(world: Path, pairs: int) -> Row:
    """Measure the harvest of thousands of new files."""
    must_be_root()
    with loop() as runner:
        repository = Repository(made_in(world, "harvest"), SMALL, runner)
        figures = by_turns(
            pairs, lambda: _harvested(repository, _MAKE_FILES, NEW_FILES), lambda: 0.0, warm_up=1
        )
    what = f"the harvest of {NEW_FILES:,} new files, with their diff and bundle; beside nothing"
    notes = spread(figures)[:1]
    return Row("harvest-new", what, "ms", *figures, "at most", 1500.0, notes, by="added")


def _harvested(repository: Repository, script: str, files: int) -> float:
    """Return the ms of a harvest after an agent ran this; it must find so many changed files."""
    harvest, took = repository.harvest(script)
    changes = harvest.changes
    if harvest.warnings or (0 if changes is None else changes.files) != files:
        raise Broken(f"the harvest found {changes} {harvest.warnings}")
    return took
