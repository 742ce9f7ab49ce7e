"""The queue of many nodes on one Postgres, with Procrastinate as its engine; docs/decisions/queue-engine.md."""
