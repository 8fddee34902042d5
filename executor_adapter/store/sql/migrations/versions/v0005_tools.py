"""Create the tables of what holds for tools in all executors, and of what each executor holds of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
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


def downgrade() -> None:
    op.drop_table("executor_adapter_tool_uses")
    op.drop_table("executor_adapter_tools")
