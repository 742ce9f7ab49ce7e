"""The OpenAPI document: FastAPI's, with the bodies that we parse ourselves and the way to authenticate."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from threading import Lock
from types import ModuleType
from typing import Annotated, Any, get_args

from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from typing_extensions import is_typeddict

from steadyhand.api.openapi.operations import SECURITY_SCHEME, use_classic_errors
from steadyhand.api.schemas import (
    bulk_bodies,
    classic_bodies,
    forecast_bodies,
    native_bodies,
    node_bodies,
    openai_bodies,
    openai_requests,
    requests,
    schedule_bodies,
    tool_bodies,
    warm_bodies,
)
from steadyhand.api.schemas.route_table import DocumentedRoute, PathParam

_BODY_MODULES = (
    native_bodies,
    warm_bodies,
    classic_bodies,
    bulk_bodies,
    forecast_bodies,
    tool_bodies,
    schedule_bodies,
    node_bodies,
    openai_bodies,
)
_DESCRIPTION = (
    "Post a prompt; an agent works on it in its own checkout, within a budget and a deadline. Every job is kept "
    "from the moment it is accepted. `/execute` and `/jobs/..` are the routes of the earlier service, `/v1/jobs` "
    "the native ones, `/v1/chat/completions` is for clients of the OpenAI API."
)
_TAGS = {
    "health": "How the service is; no key is needed.",
    "classic": "The routes of the earlier service.",
    "jobs": "Jobs, their events and what they leave.",
    "offers": "What can be asked for.",
    "keys": "Who may ask, and what was spent.",
    "openai": "For clients of the OpenAI API.",
}


def document_builder(
    routes: Sequence[DocumentedRoute],
    examples: Callable[[], Mapping[str, Any]],
    version: str,
    has_classic_errors: Callable[[str], bool] = lambda _path: False,
) -> Callable[[], dict[str, Any]]:
    """Return a function that builds the document of these routes at its first call, and then returns the same one.

    It may be called from several threads. Paths for which `has_classic_errors` is true list wrong fields as the
    earlier service did.
    """
    lock = Lock()
    documents: list[dict[str, Any]] = []

    def build_once() -> dict[str, Any]:
        with lock:
            if not documents:
                documents.append(_build_document(routes, examples(), version, has_classic_errors))
            return documents[0]

    return build_once


def _build_document(
    routes: Sequence[DocumentedRoute],
    examples: Mapping[str, Any],
    version: str,
    has_classic_errors: Callable[[str], bool],
) -> dict[str, Any]:
    from fastapi import APIRouter  # noqa: PLC0415  # no request but the one for the document needs it
    from fastapi.openapi.utils import get_openapi  # noqa: PLC0415

    router = APIRouter()
    for route in routes:
        endpoint = _fastapi_endpoint(route.endpoint)
        router.add_api_route(route.path, endpoint, methods=[route.method], **route.documentation)
    document = get_openapi(
        title="Steadyhand",
        version=version,
        summary="Runs headless coding agents as a dependable service.",
        description=_DESCRIPTION,
        routes=router.routes,
        tags=[{"name": name, "description": text} for name, text in _TAGS.items()],
    )
    components = document.setdefault("components", {})
    components["schemas"] = _component_schemas()
    # Put in here and not by the routes: FastAPI takes every null out of the examples that routes bring along.
    components["examples"] = {name: {"value": value} for name, value in examples.items()}
    components["securitySchemes"] = {
        SECURITY_SCHEME: {"type": "http", "scheme": "bearer", "description": "A key of this service."}
    }
    components["headers"] = {
        "x-request-id": {
            "description": "The request's id, as in the log; on every response.",
            "schema": {"type": "string"},
        }
    }
    for path, path_item in document["paths"].items():
        for operation in path_item.values():
            _remove_default_422(operation["responses"])
            if has_classic_errors(path):
                use_classic_errors(operation)
            for response in operation["responses"].values():
                headers = response.setdefault("headers", {})
                headers["x-request-id"] = {"$ref": "#/components/headers/x-request-id"}
    return document


def _fastapi_endpoint(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function with the parameters of an endpoint, those of the path in FastAPI's own form."""
    from fastapi import Path  # noqa: PLC0415  # see above

    @functools.wraps(endpoint)
    def documented() -> None:
        """Stand for the endpoint: only its signature is read."""

    signature = inspect.signature(endpoint)
    parameters = []
    for parameter in signature.parameters.values():
        texts = [each for each in get_args(parameter.annotation)[1:] if isinstance(each, PathParam)]
        annotation = Annotated[str, Path(description=texts[0].description)] if texts else parameter.annotation
        parameters.append(parameter.replace(annotation=annotation))
    documented.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # read by `inspect`
    return documented


def _remove_default_422(responses: dict[str, Any]) -> None:
    """Remove the response that FastAPI supposes for a path with a parameter: no route here sends it."""
    content = responses.get("422", {}).get("content", {}).get("application/json", {})
    if content.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
        del responses["422"]


def _component_schemas() -> dict[str, Any]:
    """Return the schema of every request body, response body and event."""
    modes: list[tuple[type, JsonSchemaMode]] = [
        *(
            (model, "validation")
            for module in (requests, schedule_bodies, node_bodies, openai_requests)
            for model in _public_classes(module)
            if issubclass(model, BaseModel)
        ),
        *(
            (body, "serialization")
            for module in (
                native_bodies,
                warm_bodies,
                classic_bodies,
                bulk_bodies,
                forecast_bodies,
                tool_bodies,
                schedule_bodies,
                node_bodies,
                openai_bodies,
            )
            for body in _public_classes(module)
            if is_typeddict(body)
        ),
    ]
    _, definitions = TypeAdapter.json_schemas(
        [(each.__name__, mode, TypeAdapter(each)) for each, mode in modes],
        ref_template="#/components/schemas/{model}",
    )
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas


def _public_classes(module: ModuleType) -> list[type]:
    """Return the classes that a module defines, without bases, generic classes and private ones."""
    classes = [value for value in vars(module).values() if isinstance(value, type)]
    return [
        each
        for each in classes
        if each.__module__ == module.__name__
        and not each.__name__.startswith("_")
        and not each.__subclasses__()
        and not getattr(each, "__parameters__", ())
    ]
