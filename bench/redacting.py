"""What redaction costs: the index of a run's secret while others are live, and the words of live text it holds back."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from bench.rows import Row
from steadyhand.redact import Redactor

LIVE = 64
"""The runs that are live at once, each with a secret of its own."""
STAYING = 20
"""The secrets of the service itself."""
_MEGABYTE = 1 << 20


def measure(_world: Path, pairs: int) -> list[Row]:
    """Measure the begin and the end of one run beside 63 others, and the share of words that are held back."""
    redactor = Redactor([f"sk-{secrets.token_urlsafe(30)}" for _ in range(STAYING)])
    words = re.findall(r" ?[A-Za-z']+[,.]?", "".join(_pages()))
    text = "".join(words).encode()
    text = (text * (_MEGABYTE // len(text) + 1))[:_MEGABYTE]
    index, search, alone = [], [], []
    for _ in range(pairs):
        alone.append(_milliseconds(lambda: redactor.search(text)))
        with ExitStack() as stack:
            for _run in range(LIVE - 1):
                stack.enter_context(redactor.lent([_token()]))
            index.append(_milliseconds(lambda: _begin_and_end(redactor)))
            stack.enter_context(redactor.lent([_token()]))
            search.append(_milliseconds(lambda: redactor.search(text)))
            held = sum(redactor.text_stream().feed(word) != word for word in words)
    note = f"a megabyte of text is searched in {min(search):.1f} ms with {LIVE} live, in {min(alone):.1f} ms with none"
    indexed = f"processor's time for the begin and the end of a run's secret, beside {LIVE - 1} others"
    words_held = f"English words at whose end live text is held back, of {len(words):,}"
    share = [100 * held / len(words)] * pairs
    nothing = [0.0] * pairs
    return [
        Row("redaction-index", indexed, "ms", index, nothing, "at most", 1.0, (note,), "added"),
        Row("redaction-held", words_held, "%", share, nothing, "at most", 1.0, (), "added"),
    ]


def _pages() -> list[str]:
    return [path.read_text() for path in sorted((Path(__file__).parent.parent / "docs").glob("*.md"))]


def _token() -> str:
    return secrets.token_urlsafe(32)


def _begin_and_end(redactor: Redactor) -> None:
    with redactor.lent([_token()]):
        pass


def _milliseconds(take: Callable[[], object]) -> float:
    began = time.process_time()
    take()
    return 1000 * (time.process_time() - began)
