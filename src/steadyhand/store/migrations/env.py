"""The entry point of Alembic for each command; `migrate.py` passes the connection.

Alembic expects this work at import.
"""

from alembic import context

from steadyhand.store.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    render_as_batch=True,  # SQLite alters a table by copying it
)

with context.begin_transaction():
    context.run_migrations()
