"""The page of a job's changes: a tree of files, and the unified diff."""

import asyncio
import secrets
from pathlib import Path

from starlette.responses import Response

from steadyhand.errors import Conflict, NotFound
from steadyhand.web.job_actions import path_job_id
from steadyhand.web.job_page import can_continue
from steadyhand.web.unified_diff import ParsedDiff, TreeRow, colour_lines, file_tree, parse_diff
from steadyhand.web.web_app import Visit

MAX_BYTES = 8 << 20
"""The bytes of a diff that the page reads; the file to download has all."""


async def show_diff(visit: Visit) -> Response:
    """Show the changes of an ended job."""
    job_id = path_job_id(visit)
    job = await visit.control.get(visit.caller, job_id)
    parsed, is_cut, problem = ParsedDiff(), False, None
    tree: tuple[TreeRow, ...] = ()
    try:
        path = await visit.control.diff(visit.caller, job_id)
        parsed, tree, is_cut = await asyncio.to_thread(_read, path)
    except (Conflict, NotFound) as error:
        problem = error.detail
    return visit.page(
        "diff.html",
        job=job,
        diff=parsed,
        tree=tree,
        is_cut=is_cut,
        problem=problem,
        can_continue=await can_continue(visit, job),
        once=secrets.token_urlsafe(12),
        is_split=visit.request.query_params.get("view") == "split",
    )


def _read(path: Path) -> tuple[ParsedDiff, tuple[TreeRow, ...], bool]:
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    parsed = parse_diff(data[:MAX_BYTES].decode("utf-8", "replace"))
    colour_lines(parsed.files)
    return parsed, tuple(file_tree(parsed.files)), len(data) > MAX_BYTES
