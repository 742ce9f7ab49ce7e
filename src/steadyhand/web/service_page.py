"""The page of the service itself: its nodes, its schedules, and the place for the doctor."""

import contextlib
import os

from starlette.responses import Response

from steadyhand.errors import SteadyhandError
from steadyhand.web.nodes_page import list_nodes
from steadyhand.web.schedules_page import list_schedules, may_change
from steadyhand.web.web_app import Visit


async def show_service(visit: Visit) -> Response:
    """Show the nodes with their versions, slots and loads, and the schedules."""
    visit.caller.require_scope("read")
    options, control = visit.context.options, visit.control
    problem = None
    try:
        await (options.readiness_check or control.check)()
    except SteadyhandError as error:
        problem = options.redactor.text(error.detail)
    averages = None
    with contextlib.suppress(OSError):
        averages = os.getloadavg()
    return visit.page(
        "service.html",
        here=options.node,
        nodes=await list_nodes(visit),
        load=control.load(),
        problem=problem,
        schedules=[
            {"info": info, "may_change": may_change(visit, info)} for info in await list_schedules(visit)
        ],
        rejected=options.get_rejected_providers(),
        averages=averages,
        processors=os.cpu_count(),
    )
