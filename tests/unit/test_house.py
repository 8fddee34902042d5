"""Tests of the rules of the layout: which module may import which, read from the source and measured by running it."""

from __future__ import annotations

import ast
import importlib
import io
import json
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.waiting import PATIENCE

ROOT = Path(__file__).resolve().parents[2]

# The parts of the package from the top down: a part imports only the parts below it.
PARTS = (
    "cli",
    "pipeline",
    "prefect",
    "blocks",
    "pytest",
    "testing",
    "scheduler",
    "executor",
    "monitoring",
    "persistence",
    "supervision",
    "pools",
    "store",
    "config",
    "worker",
    "job",
    "terminal",
    "exceptions",
    "error_codes",
    "error_facts",
    "lazy",
)
# The rooms of prefect/ from the top down, likewise. `top` stands for its own modules.
PREFECT_ROOMS = (
    "top",
    "setup",
    "bulk",
    "runners",
    "engine",
    "reporting",
    "cancellation",
    "crashes",
    "mirror",
    "child",
    "options",
)
STANDARD_LIBRARY_ALONE = ("worker", "exceptions", "error_codes", "error_facts", "lazy")
# `exceptions/__init__` is the tree of errors alone, since display.py imports it.
# All names of the modules below are for other parts, which import them there.
FACES = {"executor_adapter.exceptions.display", "executor_adapter.pipeline.flows"}
# Parts whose `__init__` exports nothing: others import the module that defines a name.
WITHOUT_FACE = {"persistence", "pools", "supervision", "worker"}
SHARED_BY_POOLS = {
    "base",
    "transport",
    "memory",
    "gpus",
    "kinds",
    "selection",
    "patience",
    "loop",
}
SHARED_BY_STORES = {"base", "host", "pickles", "records", "tools"}
PUBLIC = {
    "executor_adapter",
    "executor_adapter.config",
    "executor_adapter.error_codes",
    "executor_adapter.exceptions",
    "executor_adapter.monitoring",
    "executor_adapter.pipeline",
    "executor_adapter.pipeline.flows",
    "executor_adapter.prefect",
    "executor_adapter.scheduler",
    "executor_adapter.store",
    "executor_adapter.testing",
}
KNOWS_PREFECT = re.compile(
    r"executor_adapter\.(prefect(\.|$)|blocks$|pipeline\.flows(\.|$))|(tasks|flows|deployments)(\.|$)"
)
MAY_IMPORT = {
    "executor_adapter": {"executor_adapter"},
    "tasks": {"executor_adapter", "tasks"},
    "flows": {"executor_adapter", "tasks", "flows"},
    "deployments": {"executor_adapter", "tasks", "flows", "deployments"},
}
BUDGETS = {
    "cli": 1_643,
    "config": 1_013,
    "exceptions": 166,
    "executor": 1_155,
    "job": 1_044,
    "modules": 463,
    "monitoring": 698,
    "persistence": 1_121,
    "pipeline": 4_462,
    "pools": 516,
    "pools/cluster": 3_391,
    "pools/in_process": 628,
    "pools/memory": 391,
    "pools/process": 1_514,
    "pools/transport": 584,
    "prefect": 5_562,
    "scheduler": 420,
    "store": 1_678,
    "supervision": 2_501,
    "worker": 1_733,
}
"""Lines of code that each part may have. A number is only ever lowered: what takes lines away lowers it."""
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
STATE_WRITERS = {"executor_adapter.job.model", "executor_adapter.job.live_state"}


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
    """Yield every import at any depth; `from a import b` counts as a.b, which is a module or a name in one."""
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


PATHS = dict(source_files())


@cache
def trees() -> dict[str, ast.Module]:
    """Return the parsed modules; only the process that runs these tests parses them, and not each that collects."""
    return {module: ast.parse(path.read_text(), str(path)) for module, path in PATHS.items()}


@cache
def imports() -> list[Import]:
    return [found for module, tree in trees().items() for found in imports_of(module, tree)]


def within(target: str, package: str) -> bool:
    return target == package or target.startswith(package + ".")


def module_of(target: str) -> str | None:
    """Return the module of the source that `target` is, or is a name in; None for other libraries."""
    while target and target not in PATHS:
        target = target.rpartition(".")[0]
    return target or None


def part(name: str) -> str | None:
    """Return `pools` for executor_adapter.pools.base; None for what is not in a part of the package."""
    parts = name.split(".")
    return parts[1] if parts[0] == "executor_adapter" and len(parts) > 1 else None


@cache
def between_parts() -> list[tuple[Import, str]]:
    return [
        (found, home)
        for found in imports()
        if part(found.module) and (home := module_of(found.target)) and part(home) and part(home) != part(found.module)
    ]


def exported(face: str) -> set[str]:
    """Return the names that a package exports: `name as name` and its own functions, or its `__all__`.

    A lazy package imports them for type checkers alone.
    """
    values = {ast.unparse(each.targets[0]): each.value for each in trees()[face].body if isinstance(each, ast.Assign)}
    if "__all__" in values:
        return set(ast.literal_eval(values["__all__"]))
    lazy = [each for block in trees()[face].body if isinstance(block, ast.If) for each in block.body]
    imported = [each for each in (*trees()[face].body, *lazy) if isinstance(each, ast.ImportFrom)]
    aliases = [alias for each in imported for alias in each.names]
    functions = {each.name for each in trees()[face].body if isinstance(each, ast.FunctionDef)}
    return functions | {alias.name for alias in aliases if alias.name == alias.asname}


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that reach one another (Tarjan's strongly connected components)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in edges.get(node, ()):
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in edges:
        if node not in order:
            visit(node)
    return found


def test_the_source_is_found() -> None:
    """The rules below have something to hold of."""
    assert {"executor_adapter", "executor_adapter.job.model", "executor_adapter.pools.base"} <= trees().keys()
    assert len(imports()) > 1000
    assert len(between_parts()) > 200


def test_no_module_imports_in_a_circle() -> None:
    """No modules import one another in a circle, imports for types and inside functions included.

    What a face imports for types only stands for names that it loads when they are first used, so it counts too, but
    for the face of the whole package, which nothing inside it imports.
    """
    edges: dict[str, set[str]] = {}
    for found in imports():
        home = module_of(found.target)
        if home is not None and home != found.module and found.module != "executor_adapter":
            edges.setdefault(found.module, set()).add(home)
    assert cycles(edges) == []


def test_circles_are_found() -> None:
    """The search for circles finds one through three modules, and none where there is none."""
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert cycles({"a": {"b", "c"}, "b": {"c"}}) == []


def test_every_part_has_a_place() -> None:
    """Every folder and module of the package is in the list of parts."""
    assert {found for module in PATHS if (found := part(module))} == set(PARTS)


def test_parts_import_downwards() -> None:
    """A part of the package imports only the parts below it, also for types and inside functions."""
    assert [
        str(found)
        for found, home in between_parts()
        if PARTS.index(part(home) or "") <= PARTS.index(part(found.module) or "")
    ] == []


def test_the_package_itself_is_not_imported_from_inside() -> None:
    """Modules of the package name the part that they import from, not the whole package."""
    assert [
        str(found) for found in imports() if part(found.module) and module_of(found.target) == "executor_adapter"
    ] == []


def test_parts_import_the_faces_of_other_parts_alone() -> None:
    """A part imports from another only what that exports in its `__init__`, if it has such a face."""
    offences = []
    for found, home in between_parts():
        face = f"executor_adapter.{part(home)}"
        is_face = home in FACES or part(home) in WITHOUT_FACE or PATHS[face].name != "__init__.py"
        if not is_face and not (
            found.target.startswith(face + ".") and found.target[len(face) + 1 :] in exported(face)
        ):
            offences.append(str(found))
    assert offences == []


def test_what_a_face_exports_is_there() -> None:
    """Every name in the `__all__` of a face can be imported."""
    faces = [f"executor_adapter.{name}" for name in PARTS if name != "prefect"] + ["executor_adapter"]
    code = "".join(f"from {face} import *\n" for face in faces)
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=PATIENCE)


LAZY_FACES = [face for face, path in PATHS.items() if "__all__ = lazy_attributes" in path.read_text()]


@pytest.mark.parametrize("face", LAZY_FACES)
def test_a_lazy_face_exports_what_type_checkers_see(face: str) -> None:
    """The names that a lazy package reads from its source are those that it imports for type checkers."""
    assert set(importlib.import_module(face).__all__) == exported(face) != set()


def test_a_lazy_face_exports_no_name_of_its_modules() -> None:
    """A lazy name is not that of a module beside it, which the import system would put in its place."""
    for face in LAZY_FACES:
        modules = {name for name in exported(face) if f"{face}.{name}" in PATHS}
        assert modules == set() or face == "executor_adapter", face


def prefect_room(name: str) -> str | None:
    parts = name.split(".")
    if parts[:2] != ["executor_adapter", "prefect"]:
        return None
    return parts[2] if len(parts) > 2 and parts[2] in PREFECT_ROOMS else "top"


def test_the_rooms_of_prefect_import_downwards() -> None:
    """A room of prefect/ imports only the rooms below it."""
    offences = [
        str(found)
        for found in imports()
        if (room := prefect_room(found.module))
        and (home := module_of(found.target))
        and (other := prefect_room(home))
        and PREFECT_ROOMS.index(other) < PREFECT_ROOMS.index(room)
    ]
    assert offences == []


def test_only_prefect_and_the_four_top_folders_import_prefect() -> None:
    """The core knows nothing of Prefect, not even a type."""
    assert [str(i) for i in imports() if within(i.target, "prefect") and not KNOWS_PREFECT.match(i.module)] == []


def test_nothing_private_of_prefect_is_imported() -> None:
    """Neither `prefect._internal` nor an underscored name of Prefect is imported."""
    private = re.compile(r"prefect(\.\w+)*\._(?!_)")
    assert [str(i) for i in imports() if private.match(i.target)] == []


def test_nothing_private_of_prefect_is_reached_by_attribute_or_by_name() -> None:
    """Neither `prefect.flows._private` as an expression nor "prefect._internal" as a string is used."""
    offences = [
        f"{module}:{node.lineno}"
        for module, tree in trees().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and re.match(r"prefect\.(\w+\.)*_(?!_)", ast.unparse(node)))
        or (isinstance(node, ast.Constant) and re.match(r"prefect\.(\w+\.)*_(?!_)", str(node.value)))
    ]
    assert offences == []


def test_houses_import_downwards() -> None:
    """Deployments import flows, flows import tasks, tasks import the package, and never the other way round."""
    offences = [
        str(i)
        for i in imports()
        if (target := i.target.split(".")[0]) in MAY_IMPORT and target not in MAY_IMPORT[i.module.split(".")[0]]
    ]
    assert offences == []


def test_tasks_and_flows_use_public_imports_alone() -> None:
    """Users copy tasks/ and flows/, so these import only public paths of the package."""
    offences = [
        str(i)
        for i in imports()
        if i.module.split(".")[0] in {"tasks", "flows", "deployments"}
        and within(i.target, "executor_adapter")
        and i.target.rpartition(".")[0] not in PUBLIC
        and i.target not in PUBLIC
    ]
    assert offences == []


def test_no_underscored_name_leaves_its_folder() -> None:
    """A name with an underscore is imported only within the folder of its module."""
    offences = [
        str(i)
        for i in imports()
        if (home := module_of(i.target))
        and re.search(r"\._(?!_)", i.target)
        and PATHS[home].parent != PATHS[i.module].parent
    ]
    assert offences == []


def test_pools_do_not_know_one_another() -> None:
    """A pool imports its own modules and what all pools share, and the shared modules import no pool."""
    pools = "executor_adapter.pools."
    kinds = {
        (i, i.module.split(".")[2], home.split(".")[2])
        for i in imports()
        if i.module.startswith(pools) and (home := module_of(i.target)) and home.startswith(pools)
    }
    assert kinds
    assert [str(i) for i, own, other in kinds if other not in SHARED_BY_POOLS | {own}] == []


def test_stores_and_pools_do_not_know_one_another() -> None:
    """No store imports a pool, and no pool imports a store."""
    rooms = {"store", "pools"}
    assert [str(i) for i, home in between_parts() if {part(i.module), part(home)} == rooms] == []


def test_stores_do_not_know_one_another() -> None:
    """A store imports its own modules and what all stores share."""
    between = [
        i for i in imports() if part(i.module) == part(i.target) == "store" and i.module != "executor_adapter.store"
    ]
    assert between
    assert [str(i) for i in between if i.target.split(".")[2] not in SHARED_BY_STORES | {i.module.split(".")[2]}] == []


def lines_of_code(source: str) -> int:
    """Return how many lines of `source` hold code: not those of docstrings and comments alone, and not blank ones."""
    texts = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return len({n for t in tokens if t.type not in NO_CODE for n in range(t.start[0], t.end[0] + 1)} - texts)


def room(path: Path) -> str:
    """Return the part that `path` belongs to; those of pools/ and the modules of the package are told apart."""
    parts = path.relative_to(ROOT / "executor_adapter").parts
    if len(parts) == 1:
        return "modules"
    return "/".join(parts[:2]) if parts[0] == "pools" and len(parts) > 2 else parts[0]


def test_each_part_keeps_to_its_budget() -> None:
    """No part has more lines of code than its budget; what is left of each is printed."""
    assert lines_of_code('"""Text."""\n\n# Why.\nx = (\n    1,  # one\n)\n') == 3
    lines: Counter[str] = Counter()
    for path in (ROOT / "executor_adapter").rglob("*.py"):
        lines[room(path)] += lines_of_code(path.read_text())
    for name, budget in BUDGETS.items():
        print(f"{name:18} {lines[name]:6,} of {budget:6,}")
    print(f"{'all':18} {lines.total():6,} of {sum(BUDGETS.values()):6,}")
    assert {name: n for name, n in lines.items() if n > BUDGETS.get(name, 0)} == {}


@pytest.mark.parametrize("module", sorted(m for m in PATHS if part(m) in STANDARD_LIBRARY_ALONE))
def test_some_parts_import_the_standard_library_alone(module: str) -> None:
    """The worker's side, and what it imports, needs the standard library alone: each worker pays for its imports."""
    offences = [
        str(i)
        for i in imports()
        if i.module == module
        and not i.for_types
        # Loaded only for a value that nothing else can pickle.
        and not (i.lazy and i.target == "cloudpickle")
        and i.target.split(".")[0] not in sys.stdlib_module_names
        and part(i.target) not in STANDARD_LIBRARY_ALONE
    ]
    assert offences == []


def state_writes(tree: ast.AST) -> Iterator[int]:
    """Yield the lines that assign to an attribute of something called `state`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            written = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in (each for one in written for each in ast.walk(one)):
                if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store):
                    owner = target.value
                    if ast.unparse(owner).rpartition(".")[2] == "state" and ast.unparse(owner) != "self.state":
                        yield node.lineno


def test_a_job_alone_writes_its_state() -> None:
    """The state of a job is written by the methods of Job only."""
    assert list(state_writes(ast.parse("job.state.status = 1\nstate.attempt += 1"))) == [1, 2]
    offences = [
        f"{module}:{line}"
        for module, tree in trees().items()
        if part(module) not in {None, "prefect"} and module not in STATE_WRITERS
        for line in state_writes(tree)
    ]
    assert offences == []


def modules_loaded_by(*names: str) -> set[str]:
    """Return what a new interpreter has loaded after importing `names`, beyond what it starts with."""
    code = f"""
import importlib, json, sys
before = set(sys.modules)
for name in {list(names)!r}:
    importlib.import_module(name)
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    return set(json.loads(done.stdout))


def test_a_worker_loads_the_standard_library_alone() -> None:
    """A worker that has started has loaded no pydantic, no prefect and no pandas: measured, not read."""
    loaded = modules_loaded_by("executor_adapter.worker.guardian", "executor_adapter.worker.process")
    foreign = {name for name in loaded if name.split(".")[0] not in sys.stdlib_module_names}
    assert {part(name) for name in foreign} <= {None, *STANDARD_LIBRARY_ALONE}
    assert {name for name in foreign if part(name) is None} == {"executor_adapter"}
    assert "executor_adapter.worker.process" in loaded


def test_the_executor_loads_neither_prefect_nor_pandas() -> None:
    """A program without Prefect pays nothing for it."""
    loaded = modules_loaded_by("executor_adapter", "executor_adapter.executor", "executor_adapter.scheduler")
    assert "executor_adapter.executor.executor" in loaded
    assert {name for name in loaded if name.split(".")[0] in {"prefect", "pandas", "numpy", "httpx", "rich"}} == set()


def test_the_package_itself_loads_nothing() -> None:
    """Importing the package loads nothing else of it: names are loaded when first used."""
    assert {name for name in modules_loaded_by("executor_adapter") if within(name, "executor_adapter")} == {
        "executor_adapter",
        "executor_adapter.lazy",
    }
