"""The routes that need a key, read from the service's own document: a new one is in every test of them at once."""

import re
from collections.abc import Mapping
from typing import Any

PUBLIC = {("GET", "/health"), ("GET", "/livez"), ("GET", "/readyz")}
_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def protected_routes(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return method and path of each route but the public ones, with an id that nothing has for each parameter."""
    routes = {
        (method, path)
        for path, of_path in document["paths"].items()
        for method in _METHODS
        if method.lower() in of_path
    }
    assert routes > PUBLIC
    return sorted((method, re.sub(r"\{\w+\}", "000000000000", path)) for method, path in routes - PUBLIC)
