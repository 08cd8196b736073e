"""Runs migrations on the connection that `workers.results.database.schema` hands over: alembic itself opens none."""

from alembic import context

from workers.results.database.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
