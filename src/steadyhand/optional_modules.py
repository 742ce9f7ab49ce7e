"""Optional modules of other packages that are not loaded, since they cost memory and nothing here uses them."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def not_loaded(*names: str) -> Iterator[None]:
    """Let these modules be missing for what is imported in the block, unless they are loaded already.

    Only for modules that the importing package does without if they are missing.
    """
    hidden = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # `None` is how an import is made to fail
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
