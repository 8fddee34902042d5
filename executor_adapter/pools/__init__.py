"""The pools in which attempts run: coroutines, threads and processes, each a `base.WorkerPool`.

Names are loaded when first used, so that a program loads only the pools that it uses.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor_adapter.lazy import lazy_attributes

if TYPE_CHECKING:
    from executor_adapter.pools.base import MAX_QUEUED_BEHIND_SECONDS as MAX_QUEUED_BEHIND_SECONDS
    from executor_adapter.pools.base import Assignment as Assignment
    from executor_adapter.pools.base import LeasingPool as LeasingPool
    from executor_adapter.pools.base import PoolSupervisor as PoolSupervisor
    from executor_adapter.pools.base import Recall as Recall
    from executor_adapter.pools.base import WorkerPool as WorkerPool
    from executor_adapter.pools.cluster.descriptions import EngineName as EngineName
    from executor_adapter.pools.cluster.descriptions import ask_nodes as ask_nodes
    from executor_adapter.pools.cluster.descriptions import compare_node as compare_node
    from executor_adapter.pools.cluster.descriptions import describe_ssh_host as describe_ssh_host
    from executor_adapter.pools.gpus import GpuShares as GpuShares
    from executor_adapter.pools.gpus import gpu_environment as gpu_environment
    from executor_adapter.pools.gpus import gpu_ids as gpu_ids
    from executor_adapter.pools.gpus import visible_gpus as visible_gpus
    from executor_adapter.pools.in_process.call import bind as bind
    from executor_adapter.pools.in_process.call import call_in_job as call_in_job
    from executor_adapter.pools.in_process.coroutine import COROUTINE_STOP_TIMEOUT as COROUTINE_STOP_TIMEOUT
    from executor_adapter.pools.in_process.slot_loan import SlotLoan as SlotLoan
    from executor_adapter.pools.in_process.slot_loan import current_slot_loan as current_slot_loan
    from executor_adapter.pools.in_process.slot_loan import lend_slot as lend_slot
    from executor_adapter.pools.kinds import PoolKinds as PoolKinds
    from executor_adapter.pools.kinds import pool_kinds as pool_kinds
    from executor_adapter.pools.loop import LoopTimer as LoopTimer
    from executor_adapter.pools.loop import SupervisorLoop as SupervisorLoop
    from executor_adapter.pools.memory.available import AvailableMemory as AvailableMemory
    from executor_adapter.pools.memory.available import MemoryLevel as MemoryLevel
    from executor_adapter.pools.memory.control_groups import processor_quota as processor_quota
    from executor_adapter.pools.memory.guard import MemoryGuard as MemoryGuard
    from executor_adapter.pools.selection import check_job as check_job
    from executor_adapter.pools.selection import check_limits as check_limits
    from executor_adapter.pools.transport.functions import dump_by_value as dump_by_value
    from executor_adapter.pools.transport.importable import current_path as current_path
    from executor_adapter.pools.transport.importable import importable_reference as importable_reference
    from executor_adapter.pools.transport.importable import is_in_library as is_in_library

__getattr__, __dir__, __all__ = lazy_attributes(__name__)
