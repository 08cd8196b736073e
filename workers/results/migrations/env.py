"""Runs migrations on the connection that `workers.results.schema` hands over: alembic itself opens none."""

from alembic import context

from workers.results.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
