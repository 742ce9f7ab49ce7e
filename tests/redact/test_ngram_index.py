"""Secrets that come and go with runs are found like all others, and each costs the same however many there are."""

import secrets
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.example_counts import examples

from steadyhand.redact import Redactor, redactor
from steadyhand.redact.encodings import is_text
from steadyhand.redact.matcher import Matcher
from steadyhand.redact.ngram_index import MIN_PATTERN, NgramIndex

LETTERS = st.sampled_from([b"a", b"b", b"\xc5\x82", b"\xff"])
words = st.lists(LETTERS, max_size=60).map(b"".join)
patterns = st.lists(
    words.map(lambda word: (word + b"ab" * MIN_PATTERN)[: max(MIN_PATTERN, len(word))]), max_size=5
)


@given(patterns, patterns, st.lists(words, max_size=4), st.data())
@settings(max_examples=examples(300, quick=60), deadline=None)
def test_the_index_finds_what_an_automaton_finds_whatever_came_and_went(
    kept: list[bytes], gone: list[bytes], around: list[bytes], data: st.DataObject
) -> None:
    index = NgramIndex()
    for order in (gone, kept, gone):
        index.add(order)
    index.remove(gone)
    index.remove(gone)
    parts = data.draw(st.permutations([*kept, *gone, *around]))
    text = b"".join(parts)[data.draw(st.integers(0, 70)) :]
    text = text[: len(text) - data.draw(st.integers(0, 70))]
    for early in (False, True):
        assert index.search(text, early=early) == Matcher(kept).search(text, early=early)
        spans, begun = index.search(text, text_only=True, early=early)
        expected_spans, last = Matcher(filter(is_text, kept)).search(text, text_only=True, early=early)
        assert spans == expected_spans
        assert begun <= last  # the first bytes of other patterns may be held back too


def test_an_index_whose_secrets_are_all_gone_is_as_new() -> None:
    index = NgramIndex()
    tokens = [secrets.token_bytes(40) for _ in range(20)]
    index.add([*tokens, *tokens])
    index.remove(tokens)
    assert all(index.search(token)[0] == [(0, 40)] for token in tokens)
    index.remove(tokens)
    assert not index
    assert not any(vars(index).values())


def test_the_secret_of_a_run_builds_nothing_anew_however_many_runs_there_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = Redactor([f"a-secret-that-stays-{number}" for number in range(30)])
    built: list[int] = []
    added: list[int] = []

    class CountingMatcher(Matcher):
        def __init__(self, encodings: list[bytes]) -> None:
            built.append(len(encodings))
            super().__init__(encodings)

    add = NgramIndex.add

    def count_added(index: NgramIndex, encodings: set[bytes]) -> None:
        added.append(len(encodings))
        add(index, encodings)

    monkeypatch.setattr(redactor, "Matcher", CountingMatcher)
    monkeypatch.setattr(NgramIndex, "add", count_added)
    tokens = [secrets.token_urlsafe(32) for _ in range(64)]
    with ExitStack() as stack:
        for token in tokens:
            stack.enter_context(searched.lent([token]))
        assert searched.text(" ".join(tokens)) == " ".join(["[redacted]"] * 64)
    assert searched.text(tokens[5]) == tokens[5]
    assert built == []
    assert max(added) <= min(added) + 4  # those of one token alone


def test_a_short_secret_that_is_lent_is_found_too_and_those_of_others_stay() -> None:
    searched = Redactor()
    long = secrets.token_urlsafe(32)
    with searched.lent(["pass-word"]), searched.lent([long]):
        with searched.lent(["pass-word", "123-456-789"]):
            assert searched.text(f"pass-word {long} 123-456-789") == "[redacted] [redacted] [redacted]"
        assert searched.text(f"pass-word {long} 123-456-789") == "[redacted] [redacted] 123-456-789"
    assert searched.text(f"pass-word {long}") == f"pass-word {long}"
