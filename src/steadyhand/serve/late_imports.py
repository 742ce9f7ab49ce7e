"""The modules that no service needs to listen, loaded in a thread right after it does."""

import asyncio
import importlib
from collections.abc import Sequence

LATE_MODULES = ("httpx2", "steadyhand.workspace.lfs")
"""Modules whose first use would otherwise import them on the event loop.

Others are imported where they are used: FastAPI in the thread that builds the OpenAPI document, `jsonschema` in the
thread that checks an answer, Alembic when a database has to be migrated.
"""


async def load_late_modules(names: Sequence[str] = LATE_MODULES) -> None:
    """Import the modules in a thread."""
    await asyncio.to_thread(_load, names)


def _load(names: Sequence[str]) -> None:
    for name in names:
        importlib.import_module(name)
