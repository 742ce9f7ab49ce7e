"""The OpenAPI openapi_builder: FastAPI's, with the bodies that we parse ourselves and the way to authenticate."""

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import JsonSchemaMode
from typing_extensions import is_typeddict

from steadyhand.api.openapi.operations import SECURITY_SCHEME, use_classic_errors
from steadyhand.api.schemas import native_bodies, openai_bodies, openai_requests, requests

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


def openapi_builder(
    app: FastAPI,
    examples: Callable[[], Mapping[str, Any]],
    has_classic_errors: Callable[[str], bool] = lambda _path: False,
) -> Callable[[], dict[str, Any]]:
    """Return a function that builds the app's document at its first call and returns the same one from then on.

    Paths for which `has_classic_errors` is true list wrong fields as the earlier service did.
    """

    def build_once() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _build_document(app, examples(), has_classic_errors)
        return app.openapi_schema

    return build_once


def _build_document(
    app: FastAPI, examples: Mapping[str, Any], has_classic_errors: Callable[[str], bool]
) -> dict[str, Any]:
    document = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=_DESCRIPTION,
        routes=app.routes,
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
            for module in (requests, openai_requests)
            for model in _public_classes(module)
            if issubclass(model, BaseModel)
        ),
        *((body, "serialization") for body in _public_classes(native_bodies) if is_typeddict(body)),
        *((body, "serialization") for body in _public_classes(openai_bodies) if is_typeddict(body)),
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
