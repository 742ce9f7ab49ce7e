"""Full-text search over the titles and prompts of jobs, by FTS5 of SQLite or by vectors of words on Postgres.

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
from steadyhand.store.driver import POSTGRES, execute
from steadyhand.store.postgres import search_words

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

_INSERT = "INSERT INTO job_texts (rowid, title, prompt, scope) VALUES "
_INSERTED = "(?, ?, ?, ?)"
_DELETE = "INSERT INTO job_texts (job_texts, rowid, title, prompt, scope) VALUES "
_DELETED = "('delete', ?, ?, ?, ?)"
_ROWS_PER_STATEMENT = 1_000
"""With 4,000 values, of 32,766 that SQLite takes."""

_INSERT_VECTORS = (
    "INSERT INTO job_texts (job, words) SELECT job, CAST(words AS tsvector) "
    "FROM unnest(CAST(? AS bigint[]), CAST(? AS text[])) AS new (job, words) "
    "ON CONFLICT (job) DO UPDATE SET words = excluded.words"
)
_DELETE_VECTORS = "DELETE FROM job_texts WHERE job = ANY (?)"


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


@dataclass(frozen=True, slots=True)
class JobSearch:
    """A search as the index takes it.

    The values of `newest` are the expression, the sequence before which jobs are, the first one and the most of them;
    its sequences are in the column `number`. The values of `one` are the expression and the sequence.
    """

    expression: str
    newest: str
    one: str


def job_search(connection: Connection, job_filter: JobFilter) -> JobSearch:
    """Return the search of a filter's words, key, agent and workspace.

    It has no beginnings of words: FTS5 reads all jobs with any of their words before it returns the first one.
    """
    terms = [_indexable(term) for term in parse_search(job_filter.search or "")]
    scopes = [
        _scope_word(name, value) for name in _SCOPED if (value := getattr(job_filter, name)) is not None
    ]
    if connection.dialect.name == POSTGRES:
        return JobSearch(
            search_words.query(terms, scopes),
            "SELECT job AS number FROM job_texts WHERE words @@ CAST(? AS tsquery) AND job < ? AND job >= ? "
            "ORDER BY job DESC LIMIT ?",
            "SELECT 1 FROM job_texts WHERE words @@ CAST(? AS tsquery) AND job = ?",
        )
    expression = f"{{title prompt}} : ({' '.join(map(_quote, terms))})"
    return JobSearch(
        " AND ".join([*(f"scope : {_quote(scope)}" for scope in scopes), expression]),
        "SELECT rowid AS number FROM job_texts WHERE job_texts MATCH ? AND rowid < ? AND rowid >= ? "
        "ORDER BY rowid DESC LIMIT ?",
        "SELECT 1 FROM job_texts WHERE job_texts MATCH ? AND rowid = ?",
    )


def add_texts(connection: Connection, rows: Sequence[TextRow]) -> None:
    """Add jobs to the index."""
    if connection.dialect.name == POSTGRES:
        if rows:
            values = [row.values() for row in rows]
            vectors = [search_words.vector(*texts) for _, *texts in values]
            execute(connection, _INSERT_VECTORS, ([row.sequence for row in rows], vectors))
        return
    _write(connection, _INSERT, _INSERTED, rows)


def remove_texts(connection: Connection, rows: Sequence[TextRow]) -> None:
    """Remove jobs that are in the index with the same rows."""
    if connection.dialect.name == POSTGRES:
        if rows:
            execute(connection, _DELETE_VECTORS, ([row.sequence for row in rows],))
        return
    _write(connection, _DELETE, _DELETED, rows)


def _write(connection: Connection, statement: str, places: str, rows: Sequence[TextRow]) -> None:
    # FTS5 begins a new part of the index, and merges it later, for each statement of several rows and for each rowid
    # that is lower than the one before.
    rows = sorted(rows, key=lambda row: row.sequence)
    for at in range(0, len(rows), _ROWS_PER_STATEMENT):
        part = rows[at : at + _ROWS_PER_STATEMENT]
        values = [value for row in part for value in row.values()]
        execute(connection, statement + ", ".join([places] * len(part)), values)


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
