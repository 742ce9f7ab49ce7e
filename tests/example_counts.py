"""How many random examples a test has: fewer in `make test` than in `make test-long`."""

from typing import Final

_QUICK: Final = "not long"
_expressions: Final[list[str]] = []


def note_marks(expression: str) -> None:
    """Note the marks that this run of pytest selects tests by; called before any test is imported."""
    _expressions.append(expression)


def examples(full: int, *, quick: int) -> int:
    """Return the number of examples: `quick` in a run without the long tests, else `full`."""
    return quick if _QUICK in _expressions else full
