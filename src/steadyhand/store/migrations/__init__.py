"""The migrations of the schema, in the form of Alembic."""
