"""Add an index of the quarantined jobs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index(
        "executor_adapter_jobs_quarantined",
        "executor_adapter_jobs",
        ["created_at", "job_id"],
        sqlite_where=sa.text("quarantined = 1"),
        postgresql_where=sa.text("quarantined"),
    )


def downgrade() -> None:
    op.drop_index("executor_adapter_jobs_quarantined")
