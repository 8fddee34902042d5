"""Create the tables of jobs and of the hosts that run them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_LIVE = sa.text("status IN ('pending', 'running', 'retrying')")


def upgrade() -> None:
    op.create_table(
        "executor_adapter_jobs",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("job_type", sa.Text, nullable=False),
        sa.Column("tool_name", sa.Text),
        sa.Column("function", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("crashes", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("started_at", sa.Double),
        sa.Column("completed_at", sa.Double),
        sa.Column("retry_at", sa.Double),
        sa.Column("error_code", sa.Text),
        sa.Column("error_message", sa.Text),
        sa.Column("records_processed", sa.BigInteger),
        sa.Column("progress", sa.Text),
        sa.Column("attempts", sa.Text, nullable=False),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("priority", sa.BigInteger, nullable=False),
        sa.Column("max_runtime", sa.Double),
        sa.Column("call", sa.Text),
        sa.Column("pickled", sa.LargeBinary),
        sa.Column("host", sa.Text),
        sa.Column("retry_of", sa.Text),
        sa.Column("quarantined", sa.Boolean, nullable=False),
        sa.Column("cancel_requested", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    for name, columns in {
        "created": ["created_at", "job_id"],
        "status": ["status", "created_at", "job_id"],
        "type": ["job_type", "created_at", "job_id", "status"],
        "tool": ["tool_name", "created_at", "job_id", "status"],
        "queue": ["queue", "created_at", "job_id", "status"],
        "ended": ["completed_at"],
    }.items():
        op.create_index(f"executor_adapter_jobs_{name}", "executor_adapter_jobs", columns)
    op.create_index(
        "executor_adapter_jobs_live", "executor_adapter_jobs", ["host"], sqlite_where=_LIVE, postgresql_where=_LIVE
    )
    op.create_table(
        "executor_adapter_hosts",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_started", sa.BigInteger, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    op.drop_table("executor_adapter_hosts")
    op.drop_table("executor_adapter_jobs")
