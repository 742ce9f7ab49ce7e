"""Build the schedules from the settings: those of the configuration, the operations on all of them, and their loop."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from steadyhand.config.file_schema import ScheduleTable
from steadyhand.config.settings import Settings
from steadyhand.control import Control
from steadyhand.errors import ConfigError, InvalidRequest
from steadyhand.job import Job, JobSpec
from steadyhand.keyring import Keyring
from steadyhand.metrics import ServiceMetrics
from steadyhand.money import to_micros
from steadyhand.ports import JobTemplate, ScheduleSpec, ScheduleStore
from steadyhand.schedules.ended_jobs import EndedJobs
from steadyhand.schedules.firing import ScheduleDeps
from steadyhand.schedules.registry import ScheduleRegistry, check_spec
from steadyhand.schedules.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class ScheduleParts:
    """The parts of the schedules. `configured` are those of the configuration."""

    registry: ScheduleRegistry
    scheduler: Scheduler
    configured: Mapping[str, ScheduleTable]
    keyring: Keyring

    async def load(self) -> None:
        """Store the schedules of the configuration. Raise `ConfigError` for one whose key does not exist."""
        await self.registry.load(
            {
                name: (self._key_id(name, table.key), build_spec(name, table))
                for name, table in self.configured.items()
            }
        )

    def _key_id(self, name: str, key: str | None) -> str:
        valid = [each for each in self.keyring.list_keys() if each.revoked_at is None]
        if key is None:
            submitting = [each for each in valid if self.keyring.is_fixed(each.id)]
            # The key with all scopes, if the service has one.
            submitting.sort(key=lambda each: "admin" not in each.scopes)
            if not submitting:
                raise ConfigError(f"schedules.{name}.key: this service has no key of its own; name one")
            return submitting[0].id
        named = [each for each in valid if each.id == key] or [each for each in valid if each.name == key]
        if len(named) != 1:
            problem = "there is no valid key" if not named else "there are several valid keys"
            raise ConfigError(f"schedules.{name}.key: {problem} {key!r}")
        return named[0].id


def create_schedules(
    settings: Settings,
    store: ScheduleStore,
    control: Control,
    keyring: Keyring,
    ended: EndedJobs,
    *,
    get_job: Callable[[str], Awaitable[Job | None]],
    metrics: ServiceMetrics,
    clock: Callable[[], datetime],
) -> ScheduleParts:
    """Return the schedules. Raise `ConfigError` for one of the configuration that is wrong."""
    deps = ScheduleDeps(
        control,
        store,
        get_job,
        keyring.find_valid,
        clock,
        on_ticks=metrics.schedule_ticked,
        on_pause=metrics.schedule_paused,
    )
    for name, table in settings.tables.schedules.items():
        build_spec(name, table)
    registry = ScheduleRegistry(deps, ended.wake)
    return ScheduleParts(registry, Scheduler(deps, ended), settings.tables.schedules, keyring)


def build_spec(name: str, table: ScheduleTable) -> ScheduleSpec:
    """Return a schedule of the configuration. Raise `ConfigError` for a wrong expression, zone or template."""
    job = JobSpec(
        prompt=table.prompt,
        model=table.model,
        priority=table.priority,
        metadata=dict(table.metadata) or None,
        title=table.title,
        expires_in_seconds=table.expires_in_seconds,
        max_turns=table.max_turns,
        effort=table.effort,
        append_system_prompt=table.append_system_prompt,
        labels=table.labels,
        not_on_nodes=table.not_on_nodes,
        origin="schedule",
    )
    spec = ScheduleSpec(
        cron=table.cron,
        timezone=table.timezone,
        job=JobTemplate(
            job,
            agent=table.agent,
            workspace=table.workspace,
            ref=table.ref,
            budget_micros=None if table.budget_usd is None else to_micros(table.budget_usd),
            timeout_seconds=table.timeout_seconds,
            idle_timeout_seconds=table.idle_timeout_seconds,
            on_interrupt=table.on_interrupt,
            publish=table.publish,
        ),
        overlap=table.overlap,
        missed=table.missed,
        max_micros=None if table.max_usd is None else to_micros(table.max_usd),
        max_runs=table.max_runs,
        max_failures=table.max_failures,
    )
    try:
        check_spec(spec)
    except InvalidRequest as error:
        raise ConfigError(f"schedules.{name}.{error.detail.removeprefix('job.')}") from error
    return spec
