"""Connect the metrics to the parts of a service: the figures that are read at a scrape, and the scrape itself."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from steadyhand import __version__
from steadyhand.config.settings import Settings
from steadyhand.event_log import EventFeed
from steadyhand.job import State
from steadyhand.metrics import Reading, ServiceMetrics
from steadyhand.metrics.exposition import Scrape, scrape
from steadyhand.metrics.names import CALLBACK_RESULTS, NODE_STATES, WARM_RESULTS, MetricScope
from steadyhand.ports import Gateway, Queue, Store
from steadyhand.ports.nodes import NodeCounts
from steadyhand.worker import Worker

ScrapeService = Callable[[str, frozenset[MetricScope]], Coroutine[Any, Any, Scrape]]


def create_metrics(settings: Settings) -> ServiceMetrics:
    """Return the metrics of a service, with the configured agents as labels."""
    return ServiceMetrics(settings.build_catalog().agents, version=__version__)


@dataclass(frozen=True, slots=True)
class ServiceReadings:
    """The figures of a service that are read at a scrape. All of them are in memory, so an outage delays none."""

    settings: Settings
    queue: Queue
    feed: EventFeed
    store: Store
    worker: Worker
    gateway: Gateway | None
    callback_counts: Callable[[], Mapping[str, int]]
    notification_counts: Callable[[], Mapping[str, int]] | None
    clock: Callable[[], datetime]
    node_counts: Callable[[], NodeCounts]

    def __call__(self) -> Iterator[Reading]:
        """Iterate over the readings."""
        yield from self._load()
        yield Reading("steadyhand_followers", self.feed.followers)
        yield Reading("steadyhand_store_outage", self.store.outage is not None)
        yield Reading("steadyhand_store_failures_total", self.store.failures)
        yield from self._nodes()
        yield from self._providers()
        yield from self._warm()
        yield from self._deliveries("callbacks", self.callback_counts())
        if self.notification_counts is not None:
            yield from self._deliveries("notifications", self.notification_counts())

    def _load(self) -> Iterator[Reading]:
        load, oldest = self.queue.load(), self.queue.oldest_queued_at()
        yield Reading("steadyhand_jobs", load.queued, (State.QUEUED,))
        yield Reading("steadyhand_jobs", load.active + load.suspended, (State.RUNNING,))
        waited = 0.0 if oldest is None else max(0.0, (self.clock() - oldest).total_seconds())
        yield Reading("steadyhand_queue_oldest_seconds", waited)
        yield Reading("steadyhand_queue_limit", self.settings.tables.service.max_queued)
        yield Reading("steadyhand_slots", load.capacity)
        yield Reading("steadyhand_slots_used", load.active)
        yield Reading("steadyhand_runs_suspended", load.suspended)

    def _nodes(self) -> Iterator[Reading]:
        counts = self.node_counts()
        for state in NODE_STATES:
            yield Reading("steadyhand_nodes", getattr(counts, state), (state,))
        yield Reading("steadyhand_node_drained", counts.is_drained)

    def _providers(self) -> Iterator[Reading]:
        if self.gateway is None:
            return
        rejected = self.gateway.rejected_providers()
        for name, is_blocked in self.gateway.blocked_providers().items():
            yield Reading("steadyhand_provider_blocked", is_blocked, (name,))
            yield Reading("steadyhand_provider_rejected", name in rejected, (name,))

    def _warm(self) -> Iterator[Reading]:
        warm = self.worker.warm_processes() or {}
        yield Reading("steadyhand_warm_configured", warm.get("configured", 0))
        yield Reading("steadyhand_warm_waiting", warm.get("waiting", 0))
        for result, name in zip(WARM_RESULTS, ("hits", "live_hits", "misses"), strict=True):
            yield Reading("steadyhand_warm_claims_total", warm.get(name, 0), (result,))
        yield Reading("steadyhand_warm_refills_total", warm.get("refills", 0))
        yield Reading("steadyhand_warm_failures_total", warm.get("failures", 0))

    @staticmethod
    def _deliveries(kind: str, counts: Mapping[str, int]) -> Iterator[Reading]:
        for result in CALLBACK_RESULTS:
            yield Reading(f"steadyhand_{kind}_total", counts[result], (result,))
        yield Reading(f"steadyhand_{kind}_in_flight", counts["in_flight"])
        yield Reading(f"steadyhand_{kind}_waiting", counts["waiting"])
        yield Reading(f"steadyhand_{kind}_circuits_open", counts["open_circuits"])


def create_scrape(metrics: ServiceMetrics, data_dir: Path) -> ScrapeService:
    """Return the function that returns the metrics of some scopes for an `Accept` header, one scrape at a time."""
    lock = asyncio.Lock()

    async def scrape_service(accept: str, scopes: frozenset[MetricScope]) -> Scrape:
        async with lock:  # many scrapers take no more than one thread from the rest of the service
            return await scrape(metrics, accept, scopes, read_later=partial(read_disk, data_dir))

    return scrape_service


def read_disk(data_dir: Path) -> Sequence[Reading]:
    """Return the readings that wait for the disk; none if it does not answer, of which other figures tell."""
    try:
        return [Reading("steadyhand_data_free_bytes", shutil.disk_usage(data_dir).free)]
    except OSError:
        return []
