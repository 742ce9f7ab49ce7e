"""The usage and the cost of an ended run, as the gateway counted them or as its agent reports them."""

import uuid
from dataclasses import replace
from datetime import datetime

from steadyhand.addresses import redact_url
from steadyhand.agents import Agent
from steadyhand.job import Job, Usage
from steadyhand.ports import ModelCall, RunAccess, RunReport, TokenCounts
from steadyhand.worker.results import RunResult


async def with_metered_usage(report: RunReport, access: RunAccess | None) -> RunResult:
    """Return the result of an ended run with the usage that the gateway has counted."""
    if access is None:
        return RunResult(report)
    total = await access.final_usage()
    evidence = replace(
        report.evidence,
        exhausted_budget=access.exhausted_budget,
        counted_calls=total.calls,
        last_status=access.last_status,
    )
    # If no call went through the gateway, only the agent knows its cost: the cost is not zero.
    return RunResult(
        replace(report, evidence=evidence),
        total if total.calls else None,
        access.rate_limited_until,
        access.credential_rejected_until,
    )


def reported_call(job: Job, agent: Agent, report: RunReport, at: datetime) -> ModelCall | None:
    """Return the cost that the agent reports of a run as one settled call; None if it reports none."""
    result = report.evidence.result
    if result is None or result.cost_micros is None:
        return None
    usage = result.usage or Usage()
    tokens = TokenCounts(
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read_input_tokens,
        usage.cache_creation_input_tokens,
    )
    return ModelCall(
        id=uuid.uuid4().hex,
        job_id=job.id,
        run=job.run,
        api_key_id=job.api_key_id,
        agent=job.agent,
        provider=agent.provider,
        model=job.spec.model or agent.model or "",
        at=at,
        settled=True,
        tokens=tokens,
        micros=result.cost_micros,
        source="reported",
        workspace=redact_url(job.workspace) or "",
    )
