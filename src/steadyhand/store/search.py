"""Full-text search over the titles and prompts of jobs, by FTS5 of SQLite.

The index also has the key, the agent and the workspace of each job as words of their own, so that it alone finds the
jobs that match all of them. It has no copy of the text: to remove a job, it needs the same words again.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from sqlalchemy import Connection, RowMapping

from steadyhand.errors import InvalidRequest
from steadyhand.ports import JobFilter

INDEXED_CHARACTERS = 16_384
"""The characters of a prompt that the index has, from its beginning; a longer one would make each write wait."""
MAX_SEARCH_CHARACTERS = 256
MAX_SEARCH_TERMS = 16

# The tokenizer takes a run of these as one word; each of them alone makes every part of such a run a phrase.
_UNSPACED = re.compile(
    "([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\uff66-\uff9f])"
)
_TERM = re.compile(r'"([^"]*)"?|([^\s"]+)')
_SCOPED = ("api_key_id", "agent", "workspace")

_INSERT = "INSERT INTO job_texts (rowid, title, prompt, scope) VALUES (?, ?, ?, ?)"
_DELETE = "INSERT INTO job_texts (job_texts, rowid, title, prompt, scope) VALUES ('delete', ?, ?, ?, ?)"


@dataclass(frozen=True, slots=True)
class TextRow:
    """A job as the index has it. `prompt` has at least its first `INDEXED_CHARACTERS`."""

    sequence: int
    api_key_id: str
    agent: str
    workspace: str | None
    title: str | None
    prompt: str

    def values(self) -> tuple[int, str, str, str]:
        """Return the rowid, the title, the prompt and the scope."""
        scope = (_scope_word(name, value) for name in _SCOPED if (value := getattr(self, name)) is not None)
        prompt = self.prompt[:INDEXED_CHARACTERS]
        return self.sequence, _indexable(self.title or ""), _indexable(prompt), " ".join(scope)


def text_row(row: RowMapping) -> TextRow:
    """Return a job as the index has it, by its row."""
    names = (row["sequence"], row["api_key_id"], row["agent"], row["workspace"])
    return TextRow(*names, json.loads(row["record"]).get("title"), row["prompt"])


def parse_search(text: str) -> list[str]:
    """Return the terms of a search: words, and phrases, which stand in quotes.

    Raise `InvalidRequest` if there is no word, or too much of them.
    """
    if len(text) > MAX_SEARCH_CHARACTERS:
        raise InvalidRequest.at("?q", f"is longer than {MAX_SEARCH_CHARACTERS} characters")
    terms = [phrase or word for phrase, word in _TERM.findall(text)]
    terms = [term for term in terms if any(character.isalnum() for character in term)]
    if not terms:
        raise InvalidRequest.at("?q", "has no word to search for")
    if len(terms) > MAX_SEARCH_TERMS:
        raise InvalidRequest.at("?q", f"has more than {MAX_SEARCH_TERMS} words")
    return terms


def match_expression(job_filter: JobFilter) -> str:
    """Return the FTS5 query of a filter's search, key, agent and workspace.

    It has no beginnings of words: FTS5 reads all jobs with any of their words before it returns the first one.
    """
    terms = [_quote(_indexable(term)) for term in parse_search(job_filter.search or "")]
    scopes = [
        _quote(_scope_word(name, value))
        for name in _SCOPED
        if (value := getattr(job_filter, name)) is not None
    ]
    expression = f"{{title prompt}} : ({' '.join(terms)})"
    return " AND ".join([*(f"scope : {scope}" for scope in scopes), expression])


def add_texts(connection: Connection, rows: Sequence[TextRow]) -> None:
    """Add jobs to the index."""
    _write(connection, _INSERT, rows)


def remove_texts(connection: Connection, rows: Sequence[TextRow]) -> None:
    """Remove jobs that are in the index with the same rows."""
    _write(connection, _DELETE, rows)


def _write(connection: Connection, statement: str, rows: Sequence[TextRow]) -> None:
    # In the order of their rowids: FTS5 begins a new part of the index, and merges it later, for each lower one.
    values = [row.values() for row in sorted(rows, key=lambda row: row.sequence)]
    if values:
        connection.exec_driver_sql(statement, values)


def _indexable(text: str) -> str:
    """Return a text as the tokenizer gets it."""
    if text.isascii():
        return text
    return _UNSPACED.sub(r" \1 ", text).encode("utf-8", "replace").decode("utf-8")


@lru_cache(maxsize=1024)
def _scope_word(name: str, value: str) -> str:
    """Return one word for a name and a value, whatever characters the value has."""
    return name[0] + hashlib.blake2b(value.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _quote(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
