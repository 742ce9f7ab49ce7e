"""The routes of the operations page."""

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from steadyhand.web import (
    agents_page,
    bulk_page,
    callbacks_page,
    cost_page,
    diff_page,
    doctor_page,
    job_actions,
    job_list,
    job_overview,
    job_page,
    keys_page,
    live_stream,
    manifest,
    nodes_page,
    saved_page,
    schedules_page,
    service_page,
    sign_in,
    tools_page,
)
from steadyhand.web.static_files import STATIC_PREFIX
from steadyhand.web.web_app import WebApp


def page_routes() -> Sequence[BaseRoute]:
    """Create the pages of a service, with their templates loaded, and return their routes."""
    app = WebApp()
    app.renderer.load()

    async def create_link(request: Request) -> Response:
        return await sign_in.create_link(app, request)

    link_route = Route("/ui/links", create_link, methods=["POST"], include_in_schema=False)
    return [
        app.route("/", job_list.start_page),
        app.route("/ui/jobs", job_list.jobs_page),
        app.route("/ui/jobs", job_actions.submit, "POST"),
        app.route("/ui/jobs/bulk", bulk_page.confirm),
        app.route("/ui/jobs/bulk", bulk_page.apply, "POST"),
        app.route("/ui/estimate", cost_page.show_estimate),
        app.route("/ui/saved/views/new", saved_page.name_view),
        app.route("/ui/saved/views", saved_page.save_view, "POST"),
        app.route("/ui/saved/views/delete", saved_page.delete_view, "POST"),
        app.route("/ui/saved/prompts", saved_page.save_prompt, "POST"),
        app.route("/ui/saved/prompts/new", saved_page.name_prompt, "POST"),
        app.route("/ui/saved/prompts/delete", saved_page.delete_prompt, "POST"),
        app.route("/ui/costs", cost_page.costs_page),
        app.route("/ui/tools", tools_page.tools_page),
        app.route("/ui/service", service_page.show_service),
        app.route("/ui/nodes/{name}/drain", nodes_page.drain, "POST"),
        app.route("/ui/nodes/{name}/undrain", nodes_page.undrain, "POST"),
        app.route("/ui/schedules/{name}", schedules_page.show_schedule),
        app.route("/ui/schedules/{name}/pause", schedules_page.pause, "POST"),
        app.route("/ui/schedules/{name}/resume", schedules_page.resume, "POST"),
        app.route("/ui/schedules/{name}/run", schedules_page.run_now, "POST"),
        app.route("/ui/doctor", doctor_page.show_doctor),
        app.route("/ui/doctor", doctor_page.run_doctor, "POST"),
        app.route("/ui/agents", agents_page.agents_page),
        app.route("/ui/callbacks", callbacks_page.callbacks_page),
        app.route("/ui/callbacks/{delivery_id}", callbacks_page.show_delivery),
        app.route("/ui/callbacks/{delivery_id}/replay", callbacks_page.replay_delivery, "POST"),
        app.route("/ui/keys", keys_page.keys_page),
        app.route("/ui/keys", keys_page.create_key, "POST"),
        app.route("/ui/keys/{key_id}/rotate", keys_page.rotate_key, "POST"),
        app.route("/ui/keys/{key_id}/revoke", keys_page.revoke_key, "POST"),
        app.route("/ui/jobs/{job_id}", job_page.show_job),
        app.route("/ui/jobs/{job_id}/head", job_page.job_head),
        app.route("/ui/jobs/{job_id}/overview", job_overview.job_overview),
        app.route("/ui/jobs/{job_id}/diff", diff_page.show_diff),
        app.route("/ui/jobs/{job_id}/files/{kind}", job_page.download),
        app.route("/ui/jobs/{job_id}/cancel", job_actions.cancel, "POST"),
        app.route("/ui/jobs/{job_id}/retry", job_actions.retry, "POST"),
        app.route("/ui/jobs/{job_id}/resume", job_actions.resume, "POST"),
        app.route("/ui/jobs/{job_id}/steer", job_actions.steer, "POST"),
        app.route("/ui/jobs/{job_id}/turn", job_actions.next_turn, "POST"),
        app.route("/ui/stream", live_stream.stream),
        app.route("/ui/app.webmanifest", manifest.show_manifest),
        app.route("/ui/sign-in", sign_in.sign_in_page),
        app.route("/ui/sign-in", sign_in.sign_in, "POST"),
        app.route("/ui/sign-out", sign_in.sign_out, "POST"),
        app.route("/ui/open", sign_in.link_page),
        app.route("/ui/open", sign_in.redeem_link, "POST"),
        app.static_route(STATIC_PREFIX + "/{digest}/{name:path}"),
        link_route,
    ]
