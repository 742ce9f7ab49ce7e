"""Response bodies of forecasts; see `native_bodies`."""

from typing import Annotated, Literal

from pydantic import Field
from typing_extensions import TypedDict

from steadyhand.api.schemas.field_types import Timestamp
from steadyhand.api.schemas.native_bodies import Dollars


class CostForecast(TypedDict):
    """The cost of a job, its failed runs included."""

    p50_usd: Dollars
    p90_usd: Dollars
    jobs: Annotated[int, Field(description="The jobs whose cost is known.")]


class TimeForecast(TypedDict):
    """The time of all runs of a job together; the queue and waits for a limit do not count."""

    p50_seconds: float
    p90_seconds: float
    jobs: int


class BurnRate(TypedDict):
    """The spending of the last days."""

    usd_per_day: Dollars
    since: Timestamp
    priced: Annotated[
        bool,
        Field(description="False if a model's price is not known; then the highest known one was counted."),
    ]


class BudgetForecast(TypedDict):
    """A budget that jobs share, and when it runs out at the present rate."""

    scope: Literal["agent", "key", "service"]
    name: Annotated[str, Field(description="The agent's name or the key's id; empty for the service.")]
    period: Literal["day", "month"]
    limit_usd: Dollars
    spent_usd: Dollars
    exhausted: bool
    resets_at: Timestamp
    burn: BurnRate | None
    runs_out_at: Annotated[
        Timestamp | None,
        Field(description="Null if it lasts until `resets_at`, is spent, or nobody can tell."),
    ]


class Forecast(TypedDict):
    """The likely cost and time of a job of an agent, from the newest jobs of the last days."""

    object: Literal["forecast"]
    agent: str
    workspace: str | None
    model: str | None
    api_key_id: Annotated[str | None, Field(description="The key whose jobs were looked at; null is any.")]
    days: int
    since: Timestamp
    jobs: Annotated[int, Field(description="The jobs that were looked at: the newest ones, at most 1000.")]
    least_jobs: Annotated[int, Field(description="With fewer jobs there is no forecast.")]
    cost: Annotated[
        CostForecast | None, Field(description="Null with too few jobs of a known cost; never 0.")
    ]
    duration: TimeForecast | None
    burn: BurnRate | None
    budgets: list[BudgetForecast]
