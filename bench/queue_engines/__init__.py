"""Job engines on Postgres under the same faults: `python -m bench.queue_engines` (`make bench-queue-engines`).

docs/decisions/queue-engine.md has its figures. Each engine is one file; `scenarios.py` knows none of them.
"""
