"""The HTTP interface of the service: classic, native and OpenAI routes over `steadyhand.control.Control`."""

from steadyhand.api.app import create_app
from steadyhand.api.transport.context import ApiOptions, ModelAlias

__all__ = ["ApiOptions", "ModelAlias", "create_app"]
