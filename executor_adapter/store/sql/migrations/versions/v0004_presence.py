"""Add the presence of hosts, by which a host is seen to live on the same machine."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("executor_adapter_hosts", sa.Column("presence", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("executor_adapter_hosts", "presence")
