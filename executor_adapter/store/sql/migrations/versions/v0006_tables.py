"""Create the tables, as they stand in `schema` until the first release. Migrations from here on start at this one."""

from __future__ import annotations

from alembic import op

from executor_adapter.store.sql.schema import metadata

revision = "0006"
down_revision = None


def upgrade() -> None:
    metadata.create_all(op.get_bind())
