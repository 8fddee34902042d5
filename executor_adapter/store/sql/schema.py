"""The tables. A change here needs a migration, and its number as REVISION."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    false,
    text,
)

REVISION = "0006"
"""The newest migration; every open store has it."""

VERSIONS = "executor_adapter_version"

metadata = MetaData()

jobs = Table(
    "executor_adapter_jobs",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("queue", Text, nullable=False),
    Column("job_type", Text, nullable=False),
    Column("tool_name", Text),
    Column("function", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("completed_at", Double),
    Column("retry_at", Double),
    Column("error_code", Text),
    Column("error_message", Text),
    Column("traceback", Text),
    Column("records_processed", BigInteger),
    Column("progress", Text),
    Column("attempts", Text, nullable=False),
    Column("metadata", Text, nullable=False),
    Column("priority", BigInteger, nullable=False),
    Column("max_runtime", Double),
    Column("call", Text),
    Column("pickled", LargeBinary),
    Column("host", Text),
    Column("retry_of", Text),
    Column("quarantined", Boolean, nullable=False),
    Column("cancel_requested", Boolean, nullable=False, server_default=false()),
)

_live = jobs.c.status.in_(("pending", "running", "retrying"))

# Each index orders one kind of list; with the status at its end, jobs can be counted from the index alone.
Index("executor_adapter_jobs_created", jobs.c.created_at, jobs.c.job_id)
Index("executor_adapter_jobs_status", jobs.c.status, jobs.c.created_at, jobs.c.job_id)
Index("executor_adapter_jobs_type", jobs.c.job_type, jobs.c.created_at, jobs.c.job_id, jobs.c.status)
Index("executor_adapter_jobs_tool", jobs.c.tool_name, jobs.c.created_at, jobs.c.job_id, jobs.c.status)
Index("executor_adapter_jobs_queue", jobs.c.queue, jobs.c.created_at, jobs.c.job_id, jobs.c.status)
Index("executor_adapter_jobs_ended", jobs.c.completed_at)
# Few of the many stored jobs are live: a partial index has those that hosts look for.
Index("executor_adapter_jobs_live", jobs.c.host, sqlite_where=_live, postgresql_where=_live)
# Fewer still are quarantined.
Index(
    "executor_adapter_jobs_quarantined",
    jobs.c.created_at,
    jobs.c.job_id,
    sqlite_where=text("quarantined = 1"),  # As its queries have it, or SQLite would not use the index.
    postgresql_where=jobs.c.quarantined,
)

hosts = Table(
    "executor_adapter_hosts",
    metadata,
    Column("host_id", Text, primary_key=True),
    Column("machine", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("process_started", BigInteger, nullable=False),
    Column("presence", Text, nullable=False, server_default=""),
    Column("expires_at", Double, nullable=False),
)

lines = Table(
    "executor_adapter_lines",
    metadata,
    Column("job_id", Text, primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("at", Double, nullable=False),
    Column("level", Integer, nullable=False),
    Column("source", Text, nullable=False),
    Column("text", Text, nullable=False),
)

tools = Table(
    "executor_adapter_tools",
    metadata,
    Column("tool_name", Text, primary_key=True),
    Column("limited_by", Text),
    Column("max_concurrent", BigInteger),
    Column("rate", Double),
    Column("burst", BigInteger),
    Column("paused_by", Text),
    Column("paused_at", Double),
    Column("closed_until", Double, nullable=False),
    Column("starts", Double),
    Column("filled_at", Double, nullable=False),
)

tool_uses = Table(
    "executor_adapter_tool_uses",
    metadata,
    Column("tool_name", Text, primary_key=True),
    Column("host_id", Text, primary_key=True),
    Column("held", BigInteger, nullable=False),
    Column("held_since", Double, nullable=False),
    Column("waits_since", Double),
    Column("asked_at", Double, nullable=False),
    Column("max_concurrent", BigInteger),
    Column("rate", Double),
)
