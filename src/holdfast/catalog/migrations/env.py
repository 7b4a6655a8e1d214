"""How Alembic runs the steps: over the connection it is given by ``database.migrate``, in its transaction."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"], render_as_batch=True)
context.run_migrations()
