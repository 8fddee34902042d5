"""Add the tracebacks of failed jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("executor_adapter_jobs", sa.Column("traceback", sa.Text))


def downgrade() -> None:
    op.drop_column("executor_adapter_jobs", "traceback")
