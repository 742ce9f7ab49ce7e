"""Every character of a message is told once, whatever was lost, came late, or came twice."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from steadyhand.api.openai.text_assembler import Remainder, TextAssembler
from steadyhand.events import Event, LiveText, TextDelta, ThinkingDelta

NOW = datetime(2026, 1, 2, tzinfo=UTC)


def live(text: str, steps: int, offset: int, run: int = 1) -> LiveText:
    return LiveText("j", run, NOW, TextDelta("m", text), steps, offset)


def thought(text: str, steps: int, offset: int) -> LiveText:
    return LiveText("j", 1, NOW, ThinkingDelta("m", text), steps, offset)


def early(told: TextAssembler) -> str:
    return "".join(told.feed_live(item) for item in told.drain_early())


def whole_of(told: TextAssembler, text: str, run: int = 1) -> Remainder:
    rest = told.feed(Event(1, "j", run, NOW, "message", {"role": "assistant", "text": text}))
    assert rest is not None
    return rest


def tool(run: int = 1) -> Event:
    return Event(1, "j", run, NOW, "tool.started", {"tool_id": "t", "name": "Bash", "input": {}})


@given(
    st.lists(st.tuples(st.text(max_size=12), st.lists(st.integers(0, 12), max_size=6)), max_size=5),
    st.randoms(),
)
def test_what_was_told_and_what_is_missing_are_the_whole_message(
    messages: list[tuple[str, list[int]]], random: object
) -> None:
    told = TextAssembler()
    for number, (whole, cuts) in enumerate(messages):
        said = early(told) if number else ""
        ends = sorted({min(cut, len(whole)) for cut in cuts})
        for start, end in zip([0, *ends], ends, strict=False):
            if random.random() < 0.7:  # type: ignore[attr-defined]  # pieces are lost
                said += told.feed_live(live(whole[start:end], number, start))
        rest = whole_of(told, whole)
        assert rest.continues
        assert said + rest.text == whole


def test_a_piece_of_the_next_message_waits_for_the_one_before_it() -> None:
    told = TextAssembler()
    assert told.feed_live(live("One", 0, 0)) == "One"
    assert told.feed_live(live("Tw", 1, 0)) == ""
    assert whole_of(told, "One.").text == "."
    assert early(told) == "Tw"
    assert whole_of(told, "Two").text == "o"


def test_who_comes_in_the_middle_is_told_from_the_start_by_the_whole_message() -> None:
    told = TextAssembler()
    assert told.feed_live(live("dle", 0, 3)) == ""
    assert told.feed_live(live(" end", 0, 6)) == ""
    assert whole_of(told, "middle end").text == "middle end"


def test_what_was_told_before_is_not_told_again() -> None:
    told = TextAssembler()
    told.feed_live(live("abc", 0, 0))
    assert told.feed_live(live("bc", 0, 1)) == ""
    assert told.feed_live(live("cd", 0, 2)) == "d"
    whole_of(told, "abcd")
    assert told.feed_live(live("late", 0, 4)) == ""


def test_a_message_that_began_anew_does_not_fit() -> None:
    told = TextAssembler()
    told.feed_live(live("abc", 0, 0))
    assert told.feed_live(live("ax", 0, 0)) == ""
    assert told.feed_live(live("y", 0, 3)) == ""
    assert whole_of(told, "axy") == ("axy", False)


def test_a_new_run_counts_its_messages_from_the_start() -> None:
    told = TextAssembler()
    whole_of(told, "one")
    assert told.feed_live(live("tw", 0, 0, run=2)) == "tw"
    assert told.feed_live(live("old", 1, 0, run=1)) == ""
    assert whole_of(told, "two", run=2).text == "o"


def test_text_waits_for_the_tool_that_came_before_it() -> None:
    told = TextAssembler()
    whole_of(told, "one")
    assert told.feed_live(live("two", 2, 0)) == ""
    assert early(told) == ""
    assert told.feed(tool()) is None
    assert early(told) == "two"


def test_a_tool_in_the_middle_of_a_message_does_not_end_it() -> None:
    told = TextAssembler()
    assert told.feed_live(live("be", 0, 0)) == "be"
    assert told.feed(tool()) is None
    assert told.feed_live(live("gun", 1, 2)) == "gun"
    assert whole_of(told, "begun.") == (".", True)


def test_what_is_no_step_changes_nothing() -> None:
    told = TextAssembler()
    assert told.feed_live(live("be", 0, 0)) == "be"
    assert told.feed(Event(2, "j", 1, NOW, "usage", {})) is None
    assert told.feed_live(live("gun", 0, 2)) == "gun"


def test_thinking_and_the_message_after_it_are_told_apart() -> None:
    told = TextAssembler()
    assert told.feed_live(thought("Hm", 0, 0)) == "Hm"
    assert told.feed_live(live("It i", 1, 0)) == ""
    rest = told.feed(Event(1, "j", 1, NOW, "thinking", {"text": "Hm."}))
    assert rest == (".", True)
    assert early(told) == "It i"
    assert whole_of(told, "It is.") == ("s.", True)


def test_thinking_that_broke_off_is_no_part_of_the_message_that_came_instead() -> None:
    told = TextAssembler()
    assert told.feed_live(thought("It", 0, 0)) == "It"
    assert told.feed_live(live("It is", 0, 0)) == "It is"
    assert whole_of(told, "It is.") == (".", True)
