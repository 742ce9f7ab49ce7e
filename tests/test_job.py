import dataclasses
import itertools
from pathlib import Path

import pytest

from steadyhand.errors import Conflict
from steadyhand.job import ENDED, TRANSITIONS, Actor, State, Usage, transition
from steadyhand.outcome import OUTCOMES

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"


def drawn() -> set[tuple[State, State]]:
    """Give the edges of the drawing: `a -> b | c` and chains of arrows, each line with a remark at its end."""
    part = PAGE.read_text("utf-8").partition("## The states of a job\n")[2].partition("\nThe table")[0]
    edges = set()
    for line in part.splitlines():
        steps = [
            [State(word.strip()) for word in step.split("|")]
            for step in line.partition("(")[0].split("->")
            if step.strip()
        ]
        for sources, targets in itertools.pairwise(steps):
            edges |= set(itertools.product(sources, targets))
    return edges


def test_the_table_of_moves_is_the_drawing_in_the_documentation_edge_by_edge() -> None:
    assert set(TRANSITIONS) == drawn()


def test_the_documentation_says_what_each_state_that_is_not_reserved_means() -> None:
    table = PAGE.read_text("utf-8").partition("| state | means |\n")[2].partition("\n\n")[0]
    said = {row.split("|")[1].strip(" `"): row.split("|")[2].strip() for row in table.splitlines()[1:]}
    assert set(said) == set(State) - {State.WAITING}
    assert all(said.values())


def test_every_state_can_be_reached_and_can_be_left() -> None:
    assert {source for source, _ in TRANSITIONS} == set(State)
    assert {target for _, target in TRANSITIONS} == set(State)


def test_every_move_says_who_makes_it() -> None:
    assert all(movers and movers <= set(Actor) for movers in TRANSITIONS.values())


def test_an_ended_job_moves_only_back_into_the_queue() -> None:
    assert {target for source, target in TRANSITIONS if source in ENDED} == {State.QUEUED}


def test_a_move_that_is_not_in_the_table_is_refused() -> None:
    for source, target in itertools.product(State, State):
        if (source, target) in TRANSITIONS:
            assert transition(source, target) is target
        else:
            with pytest.raises(Conflict, match=f"{source} cannot become {target}"):
                transition(source, target)


def test_every_state_but_the_waiting_ones_is_what_some_outcome_means() -> None:
    assert {meaning.state for meaning in OUTCOMES.values()} == set(ENDED)


def test_ended_says_which_states_are_final() -> None:
    assert [state for state in State if state.ended] == [
        "completed",
        "failed",
        "timeout",
        "cancelled",
        "interrupted",
        "error",
    ]


def test_a_job_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Usage().turns = 3  # type: ignore[misc]
