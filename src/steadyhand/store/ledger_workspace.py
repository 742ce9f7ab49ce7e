"""The name of a workspace in the ledger: short enough for the key of the sums of usage."""

import hashlib
import re
from typing import Final

_MAX_BYTES: Final = 2048
"""Of the 2,704 bytes that a row of an index of Postgres may have. The other names of a sum need the rest."""
_ESCAPED_BYTES: Final = 7
_ESCAPED: Final = re.compile("[\x00\ud800-\udfff\ue000]")
"""The characters that are stored as escapes there; see `store.postgres.connections`."""
_BEGINNING: Final = 200


def ledger_workspace(workspace: str) -> str:
    """Return a workspace as calls and sums of usage have it: of a longer one its beginning and its digest."""
    if len(workspace) * _ESCAPED_BYTES <= _MAX_BYTES:
        return workspace
    if len(_ESCAPED.sub("-" * _ESCAPED_BYTES, workspace).encode()) <= _MAX_BYTES:
        return workspace
    digest = hashlib.sha256(workspace.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{workspace[:_BEGINNING]}…{digest}"
