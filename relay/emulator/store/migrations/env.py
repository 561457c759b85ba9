"""How alembic reaches the database: through the connection that the store hands it."""

from __future__ import annotations

from alembic import context

from relay.emulator.store.tables import Row

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Row.metadata,
    # SQLite cannot alter most of a table: alembic copies it.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
