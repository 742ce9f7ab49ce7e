"""The words of the search index on Postgres, by the rules of SQLite's: the same search finds the same jobs.

Postgres's own parser knows addresses, paths and numbers and finds other words in them. So the vector of words, with
their places for phrases, is made here, and the server only stores and compares it.
"""

import re
import unicodedata
from collections.abc import Iterator

_WORD = re.compile(r"[^\W_]+")
_MAX_PLACE = 16_383
"""The highest place of a word that a vector has; those after it have the same."""
_MAX_PLACES = 255
"""The most places of one word."""
_MAX_WORD_BYTES = 255
_TITLE_ENDS = 2
"""The places between two texts: no phrase has words of both."""
_SCOPE_MARK = "="
"""The first character of the words that are no words of a text."""


def words_of(text: str) -> Iterator[str]:
    """Return the words of a text in order, in small letters and without accents."""
    for found in _WORD.finditer(_plain(text)):
        yield found.group().encode()[:_MAX_WORD_BYTES].decode("utf-8", "ignore")


def vector(title: str, prompt: str, scope: str) -> str:
    """Return the vector of a job: a text that the server reads as `tsvector`."""
    places: dict[str, list[int]] = {}
    place = 1
    for text in (title, prompt):
        for word in words_of(text):
            found = places.setdefault(word, [])
            if len(found) < _MAX_PLACES:
                found.append(min(place, _MAX_PLACE))
            place += 1
        place += _TITLE_ENDS
    lexemes = [f"{_quote(word)}:{','.join(map(str, sorted(set(found))))}" for word, found in places.items()]
    return " ".join([*lexemes, *(_quote(_SCOPE_MARK + word) for word in scope.split())])


def query(terms: list[str], scopes: list[str]) -> str:
    """Return the query of jobs that have all of these words or phrases, and are in these scopes, as `tsquery`."""
    phrases = [" <-> ".join(_quote(word) for word in words_of(term)) for term in terms]
    parts = [
        *(_quote(_SCOPE_MARK + scope) for scope in scopes),
        *(f"({phrase})" for phrase in phrases if phrase),
    ]
    return " & ".join(parts)


def _plain(text: str) -> str:
    if text.isascii():
        return text.lower()
    decomposed = unicodedata.normalize("NFD", text.lower())
    return unicodedata.normalize(
        "NFC", "".join(each for each in decomposed if not unicodedata.combining(each))
    )


def _quote(word: str) -> str:
    return "'" + word.replace("\\", "\\\\").replace("'", "''") + "'"
