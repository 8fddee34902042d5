"""Supervision: one thread decides what happens to every job. `supervisor.Supervisor` is the place to start reading."""

from __future__ import annotations

from executor_adapter.supervision.driver import JobDriver as JobDriver
from executor_adapter.supervision.futures import JobFuture as JobFuture
from executor_adapter.supervision.limits import near_limits as near_limits
from executor_adapter.supervision.messages import JobScope as JobScope
from executor_adapter.supervision.messages import has_receiver as has_receiver
from executor_adapter.supervision.messages import make_record as make_record
from executor_adapter.supervision.messages import program_output as program_output
from executor_adapter.supervision.messages import write_line as write_line
from executor_adapter.supervision.outcome import DEFAULT_WINDOW_SECONDS as DEFAULT_WINDOW_SECONDS
from executor_adapter.supervision.outcome import ExecutorStats as ExecutorStats
from executor_adapter.supervision.outcome import StopReason as StopReason
from executor_adapter.supervision.outcome import figures as figures
from executor_adapter.supervision.outcome import mean as mean
from executor_adapter.supervision.outcome import percentile as percentile
from executor_adapter.supervision.resources import Capacity as Capacity
from executor_adapter.supervision.scheduling import SlotLimits as SlotLimits
from executor_adapter.supervision.supervisor import Supervisor as Supervisor
from executor_adapter.supervision.thread import SupervisorThread as SupervisorThread
from executor_adapter.supervision.thread import wait_saying as wait_saying
from executor_adapter.supervision.tools import ToolRequest as ToolRequest
