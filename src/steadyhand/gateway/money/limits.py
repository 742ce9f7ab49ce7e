"""The budget limits that hold for a job: its own, its agent's day, its key's day and month, the service's day."""

from collections.abc import Callable, Sequence

from steadyhand.agents import Agent
from steadyhand.job import Job
from steadyhand.ports import BudgetLimit, GetBudgetLimits, GetSharedLimits, KeyLimits

GetKeyLimits = Callable[[str], KeyLimits]
"""Returns the present limits of the key with this id."""


def job_limits(job: Job, _agent: Agent) -> Sequence[BudgetLimit]:
    """Return the limit of the job itself."""
    return [BudgetLimit("job", job.id, "job", job.budget_micros)]


def create_limits_getter(get_key_limits: GetKeyLimits, service_day_micros: int | None) -> GetBudgetLimits:
    """Return a function that returns all limits of a job. It reads those of the key each time."""
    get_shared_limits = create_shared_limits_getter(get_key_limits, service_day_micros)

    def get_limits(job: Job, agent: Agent) -> Sequence[BudgetLimit]:
        return [*job_limits(job, agent), *get_shared_limits(job.api_key_id, agent)]

    return get_limits


def create_shared_limits_getter(
    get_key_limits: GetKeyLimits, service_day_micros: int | None
) -> GetSharedLimits:
    """Return a function that returns the limits that all jobs of a key and an agent share, the present ones."""
    service = None if service_day_micros is None else BudgetLimit("service", "", "day", service_day_micros)

    def get_limits(key_id: str, agent: Agent) -> Sequence[BudgetLimit]:
        limits = []
        if agent.day_micros is not None:
            limits.append(BudgetLimit("agent", agent.name, "day", agent.day_micros))
        key = get_key_limits(key_id)
        if key.day_micros is not None:
            limits.append(BudgetLimit("key", key_id, "day", key.day_micros))
        if key.month_micros is not None:
            limits.append(BudgetLimit("key", key_id, "month", key.month_micros))
        return limits if service is None else [*limits, service]

    return get_limits
