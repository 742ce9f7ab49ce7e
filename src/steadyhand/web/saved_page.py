"""The saved views of the list of jobs, and the saved prompts of the composer. They belong to the key of the session.

They are in the store, not in the browser: so they are there on a phone as well, work without scripts, and end with
nobody's browser data. The name and the content are text that somebody wrote, and are shown as text.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from starlette.responses import Response

from steadyhand.control import MAX_SAVED_CONTENT
from steadyhand.errors import Forbidden, InvalidRequest, NotFound
from steadyhand.ports import SavedItem, SavedKind
from steadyhand.web.list_filter import ListFilter
from steadyhand.web.web_app import Visit

COMPOSER_FIELDS = ("prompt", "agent", "workspace", "ref", "model", "budget_usd")
_MAX_FIELD = 500


@dataclass(frozen=True, slots=True)
class SavedView:
    """A saved view; `query` is that of its filter."""

    name: str
    query: str


async def list_views(visit: Visit) -> Sequence[SavedView]:
    """Return the views of the session's key."""
    return [
        SavedView(item.name, ListFilter.from_query(item.content).query)
        for item in await _items(visit, "view")
    ]


async def list_prompts(visit: Visit) -> Mapping[str, Mapping[str, str]]:
    """Return the saved prompts of the session's key by their names, each with the fields of the composer."""
    return {item.name: _parse_fields(item.content) for item in await _items(visit, "prompt")}


async def _items(visit: Visit, kind: SavedKind) -> Sequence[SavedItem]:
    if "hx-request" in visit.request.headers:
        return []  # a part of the page that has none of them
    try:
        return await visit.control.list_saved(visit.caller, kind)
    except (Forbidden, NotFound):
        return []


def _parse_fields(content: str) -> Mapping[str, str]:
    try:
        found: Any = json.loads(content)
    except (ValueError, RecursionError):
        found = None
    fields = found if isinstance(found, dict) else {}
    return {name: str(fields.get(name) or "") for name in COMPOSER_FIELDS}


def _name(fields: Mapping[str, str]) -> str:
    return " ".join(fields.get("name", "").split())


async def name_view(visit: Visit) -> Response:
    """Ask for the name of a view; the URL has its filter."""
    visit.caller.require_scope("read")
    list_filter = ListFilter.from_pairs(visit.request.query_params.multi_items())
    return visit.page("save_view.html", list_filter=list_filter, name=list_filter.words[:40])


async def save_view(visit: Visit) -> Response:
    """Save the filter as a view."""
    fields = await visit.read_form()
    list_filter = ListFilter.from_query(fields.get("query", ""))
    await visit.control.save_item(visit.caller, "view", _name(fields), list_filter.query)
    return visit.redirect(f"/ui/jobs?{list_filter.query}")


async def delete_view(visit: Visit) -> Response:
    """Delete a view, and show the list as it was."""
    fields = await visit.read_form()
    await visit.control.delete_saved(visit.caller, "view", fields.get("name", ""))
    return visit.redirect(f"/ui/jobs?{ListFilter.from_query(fields.get('query', '')).query}")


async def name_prompt(visit: Visit) -> Response:
    """Ask for the name of the prompt that is in the composer."""
    composed = _composed(await visit.read_form())
    visit.caller.require_scope("submit")
    first_words = " ".join(composed["prompt"].split())[:40]
    return visit.page("save_prompt.html", composed=composed, name=first_words)


async def save_prompt(visit: Visit) -> Response:
    """Save the prompt with its settings, and show it in the composer."""
    fields = await visit.read_form()
    name = _name(fields)
    content = json.dumps(_composed(fields), ensure_ascii=False)
    if len(content) > MAX_SAVED_CONTENT:
        raise InvalidRequest.at("/prompt", f"is too long to be saved: at most {MAX_SAVED_CONTENT} characters")
    await visit.control.save_item(visit.caller, "prompt", name, content)
    return visit.redirect(f"/?saved={quote(name, safe='')}")


async def delete_prompt(visit: Visit) -> Response:
    """Delete a saved prompt."""
    fields = await visit.read_form()
    await visit.control.delete_saved(visit.caller, "prompt", fields.get("name", ""))
    return visit.redirect("/")


def _composed(fields: Mapping[str, str]) -> Mapping[str, str]:
    composed = {name: fields.get(name, "") for name in COMPOSER_FIELDS}
    if not composed["prompt"].strip():
        raise InvalidRequest.at("/prompt", "is required")
    for name in COMPOSER_FIELDS[1:]:
        if len(composed[name]) > _MAX_FIELD:
            raise InvalidRequest.at(f"/{name}", f"has to be a text of at most {_MAX_FIELD} characters")
    return composed
