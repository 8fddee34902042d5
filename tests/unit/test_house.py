"""Who may import whom: the house of ARCHITECTURE.md, held by reading every import of the source, and by running it."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# From the ground floor up: a room imports from its own floor and from those below it.
FLOORS = (
    {
        *{"bounds", "config_errors", "context", "exceptions", "presence", "signals", "start_method", "storable"},
    },
    {"retry"},
    {"job"},
    {"error_codes", "raised", "quarantine", "config", "config_sections", "config_tools", "functions"},
    {"monitoring", "store"},
    {"pools"},
    {"queue"},
    {
        *{"loop", "limits", "futures", "intake", "dispatch", "throttle", "pool_set", "ledger", "outcome", "job_log"},
        *{"defaults", "traced", "journal", "log_lines", "memory", "mirroring", "recorder", "recording", "recovery"},
        *{"supervisor", "surroundings", "driver", "hooks", "executor"},
    },
    {"scheduler", "testing"},
    {"cli"},
    {"prefect"},
)
# In pools/: what all pools share, and those that are one module; the other modules are the process pool.
SHARED_BY_POOLS = {"base", "in_process", "event_loop"}
SHARED_BY_STORES = {"base", "host", "revival"}
SMALL_POOLS = {"thread", "coroutine", "dask", "ray"}
# Each starts in every child process, where an import costs every worker its time and memory.
WORKER_SIDE = {
    "executor_adapter",
    "executor_adapter.exceptions",
    "executor_adapter.worker.context",
    "executor_adapter.error_codes",
    "executor_adapter.exceptions.display",
    "executor_adapter.pools",
    "executor_adapter.job.pool_names",
} | {
    f"executor_adapter.pools.{part}"
    for part in ("guardian", "worker", "spawned_worker", "wire", "attempt", "values", "voice", "stdio", "process_tree")
}
KNOWS_PREFECT = re.compile(
    r"executor_adapter\.prefect(\.|$)|tasks\.(collection|processing|reporting)$|(flows|deployments)\."
)
MAY_IMPORT = {
    "executor_adapter": {"executor_adapter"},
    "tasks": {"executor_adapter", "tasks"},
    "flows": {"executor_adapter", "tasks", "flows"},
    "deployments": {"executor_adapter", "tasks", "flows", "deployments"},
}


@dataclass(frozen=True)
class Import:
    """One module, or name of a module, that `module` imports."""

    module: str
    target: str
    line: int
    for_types: bool
    """Under `if TYPE_CHECKING`: never run."""
    lazy: bool
    """Inside a function: run when that is called."""

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


def source_files() -> Iterator[tuple[str, Path]]:
    for house in MAY_IMPORT:
        for path in sorted((ROOT / house).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports_of(module: str, tree: ast.AST, for_types: bool = False, lazy: bool = False) -> Iterator[Import]:
    """Every import at any depth; `from a import b` counts as a.b, which is a module or a name in one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for target in targets(node):
                yield Import(module, target, node.lineno, for_types, lazy)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            yield from imports_of(module, ast.Module(node.body, []), True, lazy)
            yield from imports_of(module, ast.Module(node.orelse, []), for_types, lazy)
        else:
            inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from imports_of(module, node, for_types, inside)


def targets(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    assert node.level == 0, f"line {node.lineno} imports relatively: write the whole name"
    return [f"{node.module}.{alias.name}" for alias in node.names]


TREES = {module: ast.parse(path.read_text(), str(path)) for module, path in source_files()}
IMPORTS = [found for module, tree in TREES.items() for found in imports_of(module, tree)]


def within(target: str, package: str) -> bool:
    return target == package or target.startswith(package + ".")


def room(name: str) -> str | None:
    """`pools` for executor_adapter.pools.wire; None for what stands in no room of the package."""
    parts = name.split(".")
    return parts[1] if parts[0] == "executor_adapter" and len(parts) > 1 else None


def floor(name: str) -> int:
    found = [number for number, rooms in enumerate(FLOORS) if room(name) in rooms]
    assert found, f"{name} has no floor: give its room one in FLOORS, and in ARCHITECTURE.md"
    return found[0]


def is_module(target: str) -> bool:
    return room(target) is not None and any(within(module, f"executor_adapter.{room(target)}") for module in TREES)


def test_the_source_is_found() -> None:
    """The rules below hold of something."""
    assert {"executor_adapter", "executor_adapter.job", "executor_adapter.pools.base"} <= TREES.keys()
    assert len(IMPORTS) > 100


def test_only_the_rooms_for_prefect_import_prefect() -> None:
    """The core knows nothing of Prefect, not even a type."""
    assert [str(i) for i in IMPORTS if within(i.target, "prefect") and not KNOWS_PREFECT.match(i.module)] == []


def test_nothing_private_of_prefect_is_imported() -> None:
    """No `prefect._internal`, no name with an underscore."""
    private = re.compile(r"prefect(\.\w+)*\._(?!_)")
    assert [str(i) for i in IMPORTS if private.match(i.target)] == []


def test_nothing_private_of_prefect_is_reached_by_attribute_or_by_name() -> None:
    """Neither `prefect.flows._private` as an expression, nor "prefect._internal" as a string to import."""
    offences = [
        f"{module}:{node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and re.match(r"prefect\.(\w+\.)*_(?!_)", ast.unparse(node)))
        or (isinstance(node, ast.Constant) and re.match(r"prefect\.(\w+\.)*_(?!_)", str(node.value)))
    ]
    assert offences == []


def test_houses_import_downwards() -> None:
    """Deployments know flows, flows know tasks, tasks know the package, and never the other way round."""
    offences = [
        str(i)
        for i in IMPORTS
        if (target := i.target.split(".")[0]) in MAY_IMPORT and target not in MAY_IMPORT[i.module.split(".")[0]]
    ]
    assert offences == []


def test_rooms_import_downwards() -> None:
    """Within the package a room imports only from its own floor and from those below."""
    offences = [
        str(i)
        for i in IMPORTS
        if not i.for_types
        and room(i.module)
        and room(i.target) != room(i.module)
        and is_module(i.target)
        and floor(i.target) > floor(i.module)
    ]
    assert offences == []


def test_every_room_has_a_floor() -> None:
    assert all(floor(module) >= 0 for module in TREES if room(module))


def pool_of(name: str) -> str | None:
    """Which pool a module of pools/, or a name in one, is a part of; None for what they share."""
    part = name.split(".")[2]
    return None if part in SHARED_BY_POOLS else part if part in SMALL_POOLS else "process"


def test_pools_do_not_know_one_another() -> None:
    """A pool imports its own parts, and what all share; that imports no pool."""
    pools = "executor_adapter.pools."
    between = [i for i in IMPORTS if i.module.startswith(pools) and i.target.startswith(pools)]
    assert between
    assert [str(i) for i in between if pool_of(i.target) not in {None, pool_of(i.module)}] == []


def test_stores_and_pools_do_not_know_one_another() -> None:
    rooms = {"store", "pools"}
    assert [str(i) for i in IMPORTS if room(i.module) in rooms and room(i.target) in rooms - {room(i.module)}] == []


def test_stores_do_not_know_one_another() -> None:
    """A store imports its own parts, and what all share."""
    between = [
        i for i in IMPORTS if room(i.module) == room(i.target) == "store" and i.module != "executor_adapter.store"
    ]
    assert [str(i) for i in between if i.target.split(".")[2] not in SHARED_BY_STORES | {i.module.split(".")[2]}] == []


def worker_side(target: str) -> bool:
    """Whether it is such a module, or a name in one; the packages themselves give names of any module."""
    packages = {"executor_adapter", "executor_adapter.pools"}
    return target in WORKER_SIDE or target.rpartition(".")[0] in WORKER_SIDE - packages


@pytest.mark.parametrize("module", sorted(WORKER_SIDE & TREES.keys()))
def test_the_worker_side_imports_the_standard_library_alone(module: str) -> None:
    """... and one another; what is imported for types is not run there."""
    offences = [
        str(i)
        for i in IMPORTS
        if i.module == module
        and not i.for_types
        # Loaded for the one value that nothing else can pickle.
        and not (i.lazy and i.target == "cloudpickle")
        and i.target.split(".")[0] not in sys.stdlib_module_names
        and not worker_side(i.target)
    ]
    assert offences == []


def modules_loaded_by(*names: str) -> set[str]:
    """What a fresh interpreter has loaded after importing `names`, beyond what it starts with."""
    code = f"""
import importlib, json, sys
before = set(sys.modules)
for name in {list(names)!r}:
    importlib.import_module(name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(done.stdout))


def test_a_worker_loads_the_standard_library_alone() -> None:
    """Measured, not read: a worker that has started has loaded no pydantic, no prefect, no pandas."""
    loaded = modules_loaded_by("executor_adapter.worker.guardian", "executor_adapter.worker.process")
    foreign = {name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names}
    assert foreign <= WORKER_SIDE
    assert "executor_adapter.worker.process" in loaded


def test_the_executor_loads_neither_prefect_nor_pandas() -> None:
    """A program without Prefect pays nothing for it."""
    loaded = modules_loaded_by("executor_adapter", "executor_adapter.executor", "executor_adapter.scheduler")
    assert "executor_adapter.executor" in loaded
    assert {name for name in loaded if name.split(".")[0] in {"prefect", "pandas", "numpy", "httpx", "rich"}} == set()


def test_the_package_itself_loads_nothing() -> None:
    """Names are loaded when first used."""
    assert {name for name in modules_loaded_by("executor_adapter") if within(name, "executor_adapter")} == {
        "executor_adapter"
    }
