"""Plain counters and histograms with a fixed number of series, which cost an integer add each."""

from bisect import bisect_left
from collections.abc import Iterator

from steadyhand.metrics.names import MetricSpec

Labels = tuple[str, ...]
MAX_SERIES = 5_000
"""The most series of one metric. Labels are bounded, so this is a second line of defence."""


class Value:
    """One number that only grows, or a gauge: callers add to `n`."""

    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Distribution:
    """Counts of values by bucket, and their sum. One thread writes."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a negative one, by a clock that was set, counts as 0."""
        if value < 0.0:  # noqa: PLR1730  # `max` takes as long as the rest
            value = 0.0
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class Series:
    """The numbers of one metric, by the values of its labels."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        self._children: dict[Labels, Value] = {}

    def child(self, *labels: str) -> Value:
        """Return the number with these labels; keep it to add to it without a lookup."""
        value = self._children.get(labels)
        if value is None:
            value = Value()
            if len(self._children) < MAX_SERIES:
                self._children[labels] = value
        return value

    def items(self) -> Iterator[tuple[Labels, Value]]:
        """Iterate over the numbers as they are now."""
        return iter(self._children.copy().items())


class Histogram:
    """The distributions of one metric, by the values of its labels."""

    def __init__(self, spec: MetricSpec) -> None:
        self.spec = spec
        self._children: dict[Labels, Distribution] = {}

    def child(self, *labels: str) -> Distribution:
        """Return the distribution with these labels; keep it to observe without a lookup."""
        found = self._children.get(labels)
        if found is None:
            found = Distribution(self.spec.buckets)
            if len(self._children) < MAX_SERIES:
                self._children[labels] = found
        return found

    def items(self) -> Iterator[tuple[Labels, Distribution]]:
        """Iterate over the distributions as they are now."""
        return iter(self._children.copy().items())
