"""Results of the client that tell of many jobs: bulk operations, forecasts and statistics; see `result_types`."""

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from steadyhand.client.decoding import ServiceObject


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkFault(ServiceObject):
    """The reason why a job was not changed."""

    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkItem(ServiceObject):
    """One job of a bulk operation: as it is now, or with `error` as it was when it was selected."""

    id: str
    state: str = ""
    run: int = 0
    title: str | None = None
    agent: str = ""
    workspace: str | None = None
    api_key_id: str = ""
    error: BulkFault | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkStop(ServiceObject):
    """The reason why a bulk operation stopped before its last job; try again in `retry_after` seconds."""

    code: str
    detail: str = ""
    retry_after: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkResult(ServiceObject):
    """The jobs of a bulk operation, newest first, and what became of each.

    If `has_more`, send the same again with this `as_of`, and `next_cursor` as `cursor`.
    """

    data: tuple[BulkItem, ...] = ()
    has_more: bool = False
    next_cursor: str | None = None
    dry_run: bool = False
    as_of: datetime | None = None
    matched: int = 0
    changed: int = 0
    failed: int = 0
    stopped: BulkStop | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostForecast(ServiceObject):
    """The cost that half and nine tenths of the jobs do not exceed."""

    p50_usd: Decimal
    p90_usd: Decimal
    jobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeForecast(ServiceObject):
    """The time that half and nine tenths of the jobs do not exceed."""

    p50_seconds: float
    p90_seconds: float
    jobs: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnRate(ServiceObject):
    """The spending of the last days; if `priced` is False, `usd_per_day` is the most that it may be."""

    usd_per_day: Decimal
    since: datetime | None = None
    priced: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetForecast(ServiceObject):
    """A budget that jobs share, and when it runs out at the present rate; `None` if it lasts or nobody can tell."""

    scope: str = ""
    name: str = ""
    period: str = ""
    limit_usd: Decimal = Decimal(0)
    spent_usd: Decimal = Decimal(0)
    exhausted: bool = False
    resets_at: datetime | None = None
    burn: BurnRate | None = None
    runs_out_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast(ServiceObject):
    """The likely cost and time of a job; each is `None` with fewer than `least_jobs` jobs to tell from."""

    agent: str = ""
    workspace: str | None = None
    model: str | None = None
    api_key_id: str | None = None
    days: int = 0
    since: datetime | None = None
    jobs: int = 0
    least_jobs: int = 0
    cost: CostForecast | None = None
    duration: TimeForecast | None = None
    burn: BurnRate | None = None
    budgets: tuple[BudgetForecast, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolRow(ServiceObject):
    """The calls of one tool in a group; a field that is not grouped by is `None`."""

    tool: str
    agent: str | None = None
    api_key_id: str | None = None
    job_id: str | None = None
    calls: int = 0
    failures: int = 0
    unfinished: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolList(ServiceObject):
    """The calls of tools, rows with the most calls first, in the `jobs` jobs that were looked at."""

    data: tuple[ToolRow, ...] = ()
    has_more: bool = False
    next_cursor: str | None = None
    jobs: int = 0
