"""Alembic runs this module for each upgrade, with the connection that `migrate` gives it."""

from __future__ import annotations

from alembic import context

from executor_adapter.store.sql.schema import VERSIONS, metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSIONS)
context.run_migrations()
