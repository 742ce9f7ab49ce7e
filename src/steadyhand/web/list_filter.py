"""The filter of the list of jobs, as it is in a URL, in a form and for `Control`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlencode

from steadyhand.errors import InvalidRequest
from steadyhand.job import State
from steadyhand.ports import JobFilter

_TEXT_NAMES = ("agent", "workspace", "key", "since", "until", "q")
_MAX_LENGTH = 500
_MAX_FIELDS = 100
_WORDS = {"key": "key", "since": "from", "until": "to", "q": "words"}


@dataclass(frozen=True, slots=True)
class ListFilter:
    """The states and the texts of a filter; a text that is empty matches all jobs."""

    states: Sequence[State]
    texts: Mapping[str, str]

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[str, str]]) -> "ListFilter":
        """Return the filter of the parameters of a URL. Other parameters are ignored."""
        named = {name: value.strip()[:_MAX_LENGTH] for name, value in reversed(pairs) if name in _TEXT_NAMES}
        states = {value for name, value in pairs if name == "state"}
        return cls(
            [state for state in State if state.value in states],
            {name: named.get(name, "") for name in _TEXT_NAMES},
        )

    @classmethod
    def from_query(cls, query: str) -> "ListFilter":
        """Return the filter of a query string."""
        try:
            return cls.from_pairs(parse_qsl(query, max_num_fields=_MAX_FIELDS))
        except ValueError as error:
            raise InvalidRequest("The filter has too many parts.") from error

    @property
    def pairs(self) -> Sequence[tuple[str, str]]:
        """The parameters of the URL, without those that are empty."""
        states = [("state", state.value) for state in self.states]
        return [*states, *((name, value) for name, value in self.texts.items() if value)]

    @property
    def query(self) -> str:
        """The query string of the URL."""
        return urlencode(self.pairs)

    @property
    def words(self) -> str:
        """The filter in words, such as `state failed or error, agent dear`; empty if it matches all jobs."""
        parts = [f"state {' or '.join(state.value for state in self.states)}"] if self.states else []
        parts += [f"{_WORDS.get(name, name)} {value}" for name, value in self.texts.items() if value]
        return ", ".join(parts)

    def job_filter(self) -> JobFilter:
        """Return the filter for `Control`; raise `InvalidRequest` for a day that is none."""
        texts = self.texts
        until = _parse_day(texts["until"], "until")
        return JobFilter(
            api_key_id=texts["key"] or None,
            states=frozenset(self.states),
            agent=texts["agent"] or None,
            workspace=texts["workspace"] or None,
            created_after=_parse_day(texts["since"], "since"),
            created_before=None if until is None else until + timedelta(days=1),
            search=texts["q"] or None,
        )


def _parse_day(text: str, name: str) -> datetime | None:
    if not text:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError as error:
        raise InvalidRequest.at(f"?{name}", "has to be a day such as 2026-11-29") from error
