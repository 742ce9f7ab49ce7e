"""The names, types and labels of all metrics: the one place where a metric is declared.

Labels are bounded: agents and providers of the configuration and `other`, outcomes, states, phases and fixed words. No
label has a key, a job, a workspace or a text of a caller. `docs/metrics.md`, the dashboard and the alert rules in
`deploy/` are tested against this table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

MetricType = Literal["counter", "gauge", "histogram"]
MetricScope = Literal["read", "read:all"]
ALL_METRIC_SCOPES: Final[frozenset[MetricScope]] = frozenset({"read", "read:all"})

OTHER: Final = "other"
"""The label of agents that are not in the configuration."""
LONG_SECONDS: Final = (1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 14400.0)
SHORT_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
PHASE_SECONDS: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
CALL_SECONDS: Final = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 600.0)


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric. `scope` is the scope of a key that sees it on the service's port.

    A histogram has the upper bounds of its `buckets`. The stored figure is divided by `divisor` when it is shown.
    """

    name: str
    type: MetricType
    meaning: str
    labels: tuple[str, ...] = ()
    scope: MetricScope = "read"
    buckets: tuple[float, ...] = ()
    divisor: int = 1


def _by_agent(
    name: str, kind: MetricType, meaning: str, *labels: str, buckets: tuple[float, ...] = (), divisor: int = 1
) -> MetricSpec:
    """Return a metric that tells of the work of all keys: seen with `read:all`, as their jobs are."""
    return MetricSpec(name, kind, meaning, ("agent", *labels), "read:all", buckets, divisor)


_SPECS: Final = (
    MetricSpec("steadyhand_build_info", "gauge", "Always 1; its label has the version.", ("version",)),
    # the queue and the slots
    MetricSpec("steadyhand_jobs", "gauge", "The jobs of this service that have not ended.", ("state",)),
    MetricSpec(
        "steadyhand_queue_oldest_seconds", "gauge", "The time that the oldest queued job has waited; 0 without one."
    ),
    MetricSpec("steadyhand_queue_limit", "gauge", "The jobs that may wait: `[service] max_queued`."),
    MetricSpec("steadyhand_slots", "gauge", "The jobs that may run at once: `[service] concurrency`."),
    MetricSpec("steadyhand_slots_used", "gauge", "The slots that are taken."),
    MetricSpec(
        "steadyhand_runs_suspended", "gauge",
        "The runs that wait for results of their clients' tools; they have no slot.",
    ),
    MetricSpec(
        "steadyhand_nodes", "gauge",
        "The nodes on the same database, by state; a drained one is in no other.", ("state",),
    ),
    MetricSpec("steadyhand_node_drained", "gauge", "1 while this node takes no new runs."),
    # jobs and runs
    _by_agent("steadyhand_jobs_accepted_total", "counter", "The jobs that were accepted."),
    _by_agent("steadyhand_jobs_ended_total", "counter", "The ends of jobs, by outcome.", "outcome"),
    MetricSpec("steadyhand_job_changes_total", "counter", "The changes of jobs to a state.", ("state",)),
    MetricSpec(
        "steadyhand_queue_wait_seconds", "histogram", "The time from queued to the start of a run.", (), "read",
        LONG_SECONDS,
    ),
    _by_agent(
        "steadyhand_run_seconds", "histogram", "The time from the start of a run to its stored end.",
        buckets=LONG_SECONDS,
    ),
    MetricSpec(
        "steadyhand_phase_seconds", "histogram", "The time that a phase of a run took.", ("phase",), "read",
        PHASE_SECONDS,
    ),
    MetricSpec("steadyhand_events_total", "counter", "The events that were stored."),
    MetricSpec("steadyhand_followers", "gauge", "The open streams of events and responses."),
    # model calls
    _by_agent("steadyhand_model_calls_total", "counter", "The calls of models that have ended.", "result"),
    _by_agent("steadyhand_model_tokens_total", "counter", "The tokens of models.", "kind"),
    _by_agent(
        "steadyhand_model_cost_dollars_total", "counter", "The cost of models in dollars.", divisor=1_000_000
    ),
    _by_agent(
        "steadyhand_model_unpriced_calls_total", "counter",
        "The calls of models without a known price; the highest known price was used.",
    ),
    MetricSpec("steadyhand_model_calls_open", "gauge", "The calls of models that go on now."),
    MetricSpec(
        "steadyhand_model_call_seconds", "histogram", "The time from the admission of a call to its end.",
        ("provider",), "read", CALL_SECONDS,
    ),
    # the gateway
    MetricSpec(
        "steadyhand_gateway_errors_total", "counter", "The calls to which a provider did not answer, or broke off.",
        ("provider",),
    ),
    MetricSpec(
        "steadyhand_gateway_rate_limits_total", "counter",
        "The rate limits of a provider: waited for, or blocking its credential.", ("provider", "action"),
    ),
    MetricSpec(
        "steadyhand_gateway_refused_total", "counter", "The requests of agents that the gateway refused.", ("reason",)
    ),
    MetricSpec(
        "steadyhand_provider_blocked", "gauge", "1 while a rate limit blocks the credential of a provider.",
        ("provider",),
    ),
    MetricSpec(
        "steadyhand_provider_rejected", "gauge", "1 while the model's service rejects the credential of a provider.",
        ("provider",),
    ),
    # the warm pool
    MetricSpec("steadyhand_warm_configured", "gauge", "The processes that should wait for jobs."),
    MetricSpec("steadyhand_warm_waiting", "gauge", "The processes that wait for jobs."),
    MetricSpec(
        "steadyhand_warm_claims_total", "counter",
        "The jobs of agents with waiting processes: those that had one, a live one, or none.", ("result",),
    ),
    MetricSpec("steadyhand_warm_refills_total", "counter", "The waiting processes that became ready."),
    MetricSpec("steadyhand_warm_failures_total", "counter", "The waiting processes that failed."),
    # callbacks
    MetricSpec(
        "steadyhand_callbacks_total", "counter", "The attempts at callbacks, by their result.", ("result",)
    ),
    MetricSpec("steadyhand_callbacks_in_flight", "gauge", "The callbacks that are under way."),
    MetricSpec(
        "steadyhand_callbacks_waiting", "gauge",
        "The callbacks that wait in the store to be sent, counted once a minute; of those about one job to one "
        "receiver only the first.",
    ),
    MetricSpec(
        "steadyhand_callbacks_circuits_open", "gauge",
        "The receivers that fail, so that only one callback at a time tries them.",
    ),
    # notifications
    MetricSpec(
        "steadyhand_notifications_total", "counter", "The attempts at notifications, by their result.", ("result",)
    ),
    MetricSpec("steadyhand_notifications_in_flight", "gauge", "The notifications that are under way."),
    MetricSpec(
        "steadyhand_notifications_waiting", "gauge",
        "The notifications that wait in the store to be sent, such as until the end of quiet hours; counted as "
        "callbacks are.",
    ),
    MetricSpec("steadyhand_notifications_circuits_open", "gauge", "The notifiers that fail."),
    # schedules
    MetricSpec(
        "steadyhand_schedule_ticks_total", "counter",
        "The ticks of schedules: those that fired, and those that were skipped.", ("result",),
    ),
    MetricSpec("steadyhand_schedule_pauses_total", "counter", "The schedules that paused themselves.", ("reason",)),
    # the store
    MetricSpec(
        "steadyhand_store_write_seconds", "histogram", "The time of one commit, with all that it writes.", (), "read",
        SHORT_SECONDS,
    ),
    MetricSpec("steadyhand_store_writes_total", "counter", "The operations that were written."),
    MetricSpec("steadyhand_store_outage", "gauge", "1 while nothing can be written."),
    MetricSpec("steadyhand_store_failures_total", "counter", "The outages of the store, and the reads that failed."),
    MetricSpec(
        "steadyhand_data_free_bytes", "gauge", "The free bytes on the disk of the data directory."
    ),
    # HTTP and the log
    MetricSpec(
        "steadyhand_http_requests_total", "counter", "The requests that were answered, without probes.",
        ("routes", "status"),
    ),
    MetricSpec(
        "steadyhand_http_response_seconds", "histogram",
        "The time from a request to the head of its response, without probes.", ("routes",), "read", SHORT_SECONDS,
    ),
    MetricSpec("steadyhand_log_lines_total", "counter", "The lines of the log.", ("level",)),
)  # fmt: skip

METRICS: Final[Mapping[str, MetricSpec]] = {spec.name: spec for spec in _SPECS}
"""Every metric of the service, by name."""

PROCESS_METRICS: Final = (
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)
"""The metrics of the service's own process, from prometheus_client; they need the scope `read`."""

CALL_RESULTS: Final = ("ok", "rate_limited", "client_error", "server_error", "no_answer")
TOKEN_KINDS: Final = ("input", "output", "cache_read", "cache_write")
RATE_LIMIT_ACTIONS: Final = ("waited", "blocked")
NODE_STATES: Final = ("alive", "silent", "drained")
WARM_RESULTS: Final = ("hit", "live", "miss")
CALLBACK_RESULTS: Final = ("delivered", "postponed", "failed", "cancelled")
TICK_RESULTS: Final = ("fired", "skipped")
PAUSE_REASONS: Final = ("max_usd", "max_runs", "max_failures", "key_revoked", "internal")
LOG_LEVELS: Final = ("debug", "info", "warning", "error", "critical")
