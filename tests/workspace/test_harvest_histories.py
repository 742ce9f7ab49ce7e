"""Generated histories: what is harvested is what a plain clone has, or a warning names what is missing.

`make test` plays the first seeds, `make test-long` 2,000. A failure prints the seed and the fewest steps that fail; to
play it again: `pytest -k "histories and [<block>]"`.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.workspace.histories import generate
from tests.workspace.history_bases import BASES
from tests.workspace.history_world import HistoryWorld, shrink

BLOCK = 6
BLOCKS, LONG_BLOCKS = 1, 334

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="layers are mounted by root")


@pytest.fixture(scope="module")
def world() -> Iterator[HistoryWorld]:
    folder = Path(tempfile.mkdtemp(prefix="sh-", dir="/tmp"))
    folder.chmod(0o755)
    yield HistoryWorld(folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "block",
    [*range(BLOCKS), *(pytest.param(block, marks=pytest.mark.long) for block in range(BLOCKS, LONG_BLOCKS))],
)
def test_what_is_harvested_of_any_history_is_what_a_plain_clone_has(world: HistoryWorld, block: int) -> None:
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        history = generate(seed, BASES)
        if world.problems(history):
            history, problems = shrink(world, history)
            pytest.fail(f"{history}\n\n" + "\n".join(problems))
