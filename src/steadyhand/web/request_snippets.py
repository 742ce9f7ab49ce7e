"""The request that would start a job like this one, for curl and for Python."""

import json
import shlex
from typing import Any

from steadyhand.addresses import redact_url
from steadyhand.job import Job
from steadyhand.money import format_dollars

_MAX_PROMPT = 20_000


def request_body(job: Job) -> dict[str, Any]:
    """Return the JSON of a request with the prompt and the settings of a job."""
    body = {
        "prompt": job.spec.prompt[:_MAX_PROMPT],
        "agent": job.agent,
        "workspace": redact_url(job.workspace),
        "ref": None if job.is_on_uncommitted else job.ref,
        "model": job.spec.model,
        "budget_usd": float(format_dollars(job.budget_micros)),
        "timeout_seconds": job.timeout_seconds,
        "title": job.spec.title,
    }
    return {name: value for name, value in body.items() if value is not None}


def curl_command(job: Job, address: str) -> str:
    """Return the request as a command of a shell; the key comes from STEADYHAND_TOKEN."""
    body = shlex.quote(json.dumps(request_body(job), ensure_ascii=False, indent=1))
    return (
        f"curl -sS {shlex.quote(f'{address}/v1/jobs')} \\\n"
        '  -H "Authorization: Bearer $STEADYHAND_TOKEN" \\\n'
        "  -H 'Content-Type: application/json' \\\n"
        f"  -d {body}"
    )


def python_program(job: Job, address: str) -> str:
    """Return the request as a program that uses the client of this package."""
    body = request_body(job)
    arguments = "".join(f"        {name}={value!r},\n" for name, value in body.items())
    return (
        "import os\n\nfrom steadyhand import Client\n\n"
        f"with Client({address!r}, os.environ['STEADYHAND_TOKEN']) as client:\n"
        f"    job = client.run(\n{arguments}    )\n"
        "    print(job.answer)\n"
    )
