"""A worker of an engine: `python -m bench.queue_engines.worker ENGINE URL JOURNAL SETTINGS`, settings as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from pathlib import Path

from bench.queue_engines.engine import Journal, Settings, load_engine


def main() -> None:
    """Work until SIGTERM."""
    name, url, journal, settings = sys.argv[1:]
    logging.basicConfig(level=logging.WARNING)
    work = Journal(Path(journal)).work
    asyncio.run(load_engine(name).run_worker(url, Settings(**json.loads(settings)), work))


if __name__ == "__main__":
    main()
