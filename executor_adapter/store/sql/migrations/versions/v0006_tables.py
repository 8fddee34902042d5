"""Create the tables. Migrations from here on start at this one."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = None


def upgrade() -> None:
    _create_jobs()
    op.create_table(
        "executor_adapter_hosts",
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("process_started", sa.BigInteger, nullable=False),
        sa.Column("presence", sa.Text, nullable=False, server_default=""),
        sa.Column("expires_at", sa.Double, nullable=False),
    )
    op.create_table(
        "executor_adapter_lines",
        sa.Column("job_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("level", sa.Integer, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "executor_adapter_tools",
        sa.Column("tool_name", sa.Text, primary_key=True),
        sa.Column("limited_by", sa.Text),
        sa.Column("max_concurrent", sa.BigInteger),
        sa.Column("rate", sa.Double),
        sa.Column("burst", sa.BigInteger),
        sa.Column("paused_by", sa.Text),
        sa.Column("paused_at", sa.Double),
        sa.Column("closed_until", sa.Double, nullable=False),
        sa.Column("starts", sa.Double),
        sa.Column("filled_at", sa.Double, nullable=False),
    )
    op.create_table(
        "executor_adapter_tool_uses",
        sa.Column("tool_name", sa.Text, primary_key=True),
        sa.Column("host_id", sa.Text, primary_key=True),
        sa.Column("held", sa.BigInteger, nullable=False),
        sa.Column("held_since", sa.Double, nullable=False),
        sa.Column("waits_since", sa.Double),
        sa.Column("asked_at", sa.Double, nullable=False),
        sa.Column("max_concurrent", sa.BigInteger),
        sa.Column("rate", sa.Double),
    )


def _create_jobs() -> None:
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
        sa.Column("traceback", sa.Text),
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
    live = sa.text("status IN ('pending', 'running', 'retrying')")
    op.create_index(
        "executor_adapter_jobs_live", "executor_adapter_jobs", ["host"], sqlite_where=live, postgresql_where=live
    )
    op.create_index(
        "executor_adapter_jobs_quarantined",
        "executor_adapter_jobs",
        ["created_at", "job_id"],
        sqlite_where=sa.text("quarantined = 1"),
        postgresql_where=sa.text("quarantined"),
    )
