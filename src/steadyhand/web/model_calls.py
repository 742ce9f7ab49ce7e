"""The calls of the model in a job: tokens, cache, share of the context and cost of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from steadyhand.events import Event, UsageReported
from steadyhand.ports import ModelCall

MAX_CALLS = 100
"""The newest calls that the page shows."""


@dataclass(frozen=True, slots=True)
class CallRow:
    """One call. A figure that is not known is None; `micros` of a call that cannot be priced, too."""

    at: datetime
    run: int
    model: str | None
    input: int
    """Tokens of the input that were neither read from the cache nor written to it."""
    cache_read: int
    cache_write: int
    output: int
    window: int | None
    micros: int | None
    is_open: bool = False
    is_complete: bool = True
    status: int | None = None

    @property
    def context(self) -> int:
        """The tokens in the model's context after the call."""
        return self.input + self.cache_read + self.cache_write + self.output

    @property
    def context_share(self) -> int | None:
        """The share of the model's window in percent; None if the window is not known."""
        return None if self.window is None else min(100, round(100 * self.context / self.window))

    @property
    def cached_share(self) -> int | None:
        """The share of the input that came from the cache in percent; None without input."""
        read = self.input + self.cache_read + self.cache_write
        return round(100 * self.cache_read / read) if read else None


def context_windows(events: Sequence[Event]) -> Mapping[str, int]:
    """Return the windows of the models as the agent reported them, by name."""
    windows: dict[str, int] = {}
    for event in events:
        sizes = event.data.get("context_windows") if event.type == UsageReported.type else None
        if isinstance(sizes, Mapping):
            windows |= {name: size for name, size in sizes.items() if isinstance(size, int) and size > 0}
    return windows


def call_rows(calls: Sequence[ModelCall], usage: Sequence[Event]) -> Sequence[CallRow]:
    """Return the calls, newest first: those of the ledger, or those that the agent reported if it has none."""
    windows = context_windows(usage)
    metered = [call for call in calls if call.source == "ledger"]
    rows = [_metered_row(call, windows) for call in metered] if metered else _reported_rows(usage, windows)
    return rows[-MAX_CALLS:][::-1]


def _metered_row(call: ModelCall, windows: Mapping[str, int]) -> CallRow:
    tokens = call.tokens
    return CallRow(
        at=call.at,
        run=call.run,
        model=call.model,
        input=tokens.input,
        cache_read=tokens.cache_read,
        cache_write=tokens.cache_write_5m + tokens.cache_write_1h,
        output=tokens.output,
        window=windows.get(call.model) or _window_of_variant(call.model, windows),
        micros=call.micros if call.priced and call.settled else None,
        is_open=not call.settled,
        is_complete=call.complete,
        status=call.status,
    )


def _window_of_variant(model: str, windows: Mapping[str, int]) -> int | None:
    """Return the window of a model that the agent names with a suffix such as `[1m]`, if there is just one."""
    sizes = {size for name, size in windows.items() if name.partition("[")[0] == model}
    return sizes.pop() if len(sizes) == 1 else None


def _reported_rows(usage: Sequence[Event], windows: Mapping[str, int]) -> list[CallRow]:
    """Return the differences between the reports of each run. The last report of a run has its cost and no call."""
    window = next(iter(windows.values())) if len(windows) == 1 else None
    model = next(iter(windows)) if len(windows) == 1 else None
    rows: list[CallRow] = []
    before: dict[int, Event] = {}
    for event in usage:
        if event.type != UsageReported.type:
            continue
        earlier = before.get(event.run)
        if event.data.get("cost_usd") is None and (earlier is not None or event.data.get("turns") == 1):
            rows.append(
                CallRow(
                    at=event.at,
                    run=event.run,
                    model=model,
                    input=_growth(event, earlier, "input_tokens"),
                    cache_read=_growth(event, earlier, "cache_read_input_tokens"),
                    cache_write=_growth(event, earlier, "cache_creation_input_tokens"),
                    output=_growth(event, earlier, "output_tokens"),
                    window=window,
                    micros=None,
                )
            )
        if event.data.get("cost_usd") is None:
            before[event.run] = event
    return rows


def _growth(event: Event, earlier: Event | None, name: str) -> int:
    return max(0, _count(event, name) - _count(earlier, name))


def _count(event: Event | None, name: str) -> int:
    value = 0 if event is None else event.data.get(name)
    return value if isinstance(value, int) else 0
