"""Connections, schema, lock and search of the store on Postgres alone. `psycopg` is imported at the first use."""
