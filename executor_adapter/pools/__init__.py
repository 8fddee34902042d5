"""The pools in which attempts run: coroutines, threads and processes, each a `base.WorkerPool`.

Names are loaded when first used, so that a program loads only the pools that it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.pools.base import Assignment, LeasingPool, PoolSupervisor, Recall, WorkerPool
    from executor_adapter.pools.cluster.descriptions import EngineName, ask_nodes, compare_node, describe_ssh_host
    from executor_adapter.pools.gpus import GpuShares, gpu_environment, gpu_ids, visible_gpus
    from executor_adapter.pools.in_process.call import bind, call_in_job
    from executor_adapter.pools.in_process.event_loop import COROUTINE_STOP_TIMEOUT, EventLoopThread
    from executor_adapter.pools.in_process.slot_loan import SlotLoan, current_slot_loan, lend_slot
    from executor_adapter.pools.kinds import PoolKinds, pool_kinds
    from executor_adapter.pools.loop import SupervisorLoop
    from executor_adapter.pools.memory.available import AvailableMemory
    from executor_adapter.pools.memory.control_groups import processor_quota
    from executor_adapter.pools.memory.guard import MemoryGuard
    from executor_adapter.pools.memory.level import MemoryLevel
    from executor_adapter.pools.patience import Patience
    from executor_adapter.pools.refused_starts import unavailable
    from executor_adapter.pools.selection import check_job, check_limits
    from executor_adapter.pools.transport.functions import dumps as dump_by_value
    from executor_adapter.pools.transport.importable import current_path, is_in_library
    from executor_adapter.pools.transport.importable import reference as importable_reference

_NAMES = {
    ".base": "Assignment LeasingPool PoolSupervisor Recall WorkerPool",
    ".cluster.descriptions": "EngineName ask_nodes compare_node describe_ssh_host",
    ".gpus": "GpuShares gpu_environment gpu_ids visible_gpus",
    ".in_process.call": "bind call_in_job",
    ".in_process.event_loop": "COROUTINE_STOP_TIMEOUT EventLoopThread",
    ".in_process.slot_loan": "SlotLoan current_slot_loan lend_slot",
    ".kinds": "PoolKinds pool_kinds",
    ".loop": "SupervisorLoop",
    ".memory.available": "AvailableMemory",
    ".memory.control_groups": "processor_quota",
    ".memory.guard": "MemoryGuard",
    ".memory.level": "MemoryLevel",
    ".patience": "Patience",
    ".refused_starts": "unavailable",
    ".selection": "check_job check_limits",
    ".transport.functions": "dump_by_value:dumps",
    ".transport.importable": "current_path importable_reference:reference is_in_library",
}

__all__ = [
    "COROUTINE_STOP_TIMEOUT",
    "Assignment",
    "AvailableMemory",
    "EngineName",
    "EventLoopThread",
    "GpuShares",
    "LeasingPool",
    "MemoryGuard",
    "MemoryLevel",
    "Patience",
    "PoolKinds",
    "PoolSupervisor",
    "Recall",
    "SlotLoan",
    "SupervisorLoop",
    "WorkerPool",
    "ask_nodes",
    "bind",
    "call_in_job",
    "check_job",
    "check_limits",
    "compare_node",
    "current_path",
    "current_slot_loan",
    "describe_ssh_host",
    "dump_by_value",
    "gpu_environment",
    "gpu_ids",
    "importable_reference",
    "is_in_library",
    "lend_slot",
    "pool_kinds",
    "processor_quota",
    "unavailable",
    "visible_gpus",
]

__getattr__, __dir__ = lazy_attributes(__name__, _NAMES)
