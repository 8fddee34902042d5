"""Which functions stored rows may run: whoever can write to the store must not run `os:system` in its programs."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from executor_adapter.job import Job, function_reference, resolve
from executor_adapter.pools.transport.importable import is_in_library
from executor_adapter.store import JobRecord, SignedPickles, Unpickle, readable_call, restore

_OWN_PACKAGE = __name__.partition(".")[0]
MAX_KNOWN = 10_000
"""References whose functions are remembered."""


class StoredFunctions:
    """Decides which records run here: those of functions that are named, or that this program submits itself.

    Args:
        named: modules (with all below them) and references `module:function`; "*" is every function. None: the
            program's own modules, which are neither in the standard library nor in installed packages.
        pickles: loads signed pickles; None where none is to be loaded.
    """

    def __init__(self, named: Sequence[str] | None, pickles: SignedPickles | None) -> None:
        self._own_modules = named is None
        self._named = frozenset(named or ())
        self._pickles = pickles
        self.unpickle: Unpickle | None = None if pickles is None else pickles.load
        """Loads the pickle of a record that may run here; None if no pickle is to be loaded."""
        self._submitted: set[str] = set()
        self._defined_as: dict[str, str | None] = {}
        """The reference under which a function is defined, by the one in a row; None if it cannot be imported."""
        self._unknown: set[str] = set()

    def add(self, function: Callable[..., Any] | str) -> None:
        """Allow the module of a function that the program submits; of the standard library, that function alone."""
        reference = function_reference(function)
        module = reference.partition(":")[0]
        is_standard = module.partition(".")[0] in sys.stdlib_module_names
        self._submitted.add(reference if is_standard else module)

    def refusal(self, record: JobRecord, *, may_import: bool = True) -> str | None:
        """Return in words why the job of this record must not run here; None if it may.

        A row that has no function to run is left to the recovery, which says what is wrong with it. Without
        `may_import`, for a caller within a transaction, it is "" until `import_unknown` was called, if a module has to
        be imported to know.
        """
        if record.pickled is not None:
            if self._pickles is None:
                return "it is stored pickled, and store.pickle_arguments is false"
            return None if self._pickles.is_signed(record.pickled) else f"its pickle {SignedPickles.REFUSAL}"
        reference = readable_call(record).get("function")
        if not isinstance(reference, str) or self._names(reference):
            return None
        module = reference.partition(":")[0]
        why = (
            f"its function {reference} is not one that stored jobs may run: "
            "if it is yours, add it or its module to store.functions"
        )
        if not self._allows(module):
            return why
        # The module is allowed, but may offer what it has imported: `jobs:os.system`.
        if reference not in self._defined_as:
            self._unknown.add(reference)
            if not may_import:
                return ""
            self.import_unknown()
        found = self._defined_as[reference]
        return None if found is None or self._names(found) or self._allows(found.partition(":")[0]) else why

    def import_unknown(self) -> bool:
        """Import the functions that could not be decided upon; return whether there were any."""
        unknown, self._unknown = self._unknown, set()
        if len(self._defined_as) > MAX_KNOWN:
            self._defined_as.clear()
        for reference in unknown:
            try:
                self._defined_as[reference] = function_reference(resolve(reference))
            except BaseException:  # Its module may do anything; the recovery meets the same, and says what.
                self._defined_as[reference] = None
        return bool(unknown)

    def to_job(self, record: JobRecord) -> Job:
        """Return the job of a record, for reading; where it must not run here, it has a MissingFunction."""
        if record.job is not None:
            return record.job
        may_run = self.refusal(record) is None
        return restore(record if may_run else replace(record, call=None, pickled=None), self.unpickle)

    def _names(self, reference: str) -> bool:
        return "*" in self._named or reference in self._named or reference in self._submitted

    def _allows(self, module: str) -> bool:
        if module in self._submitted:
            return True
        parts = module.split(".")
        if any(".".join(parts[:n]) in self._named for n in range(1, len(parts) + 1)):
            return True
        return self._own_modules and _is_of_program(parts[0])


@functools.lru_cache(maxsize=256)
def _is_of_program(name: str) -> bool:
    """Return whether a top-level module is neither of the standard library nor of an installed package.

    One that cannot be found is left to the recovery, which says so.
    """
    if name == "__main__":
        return True
    if name == _OWN_PACKAGE or name in sys.stdlib_module_names or name in sys.builtin_module_names:
        return False
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return True
    return spec is None or not any(map(is_in_library, _places(spec)))


def _places(spec: importlib.machinery.ModuleSpec) -> list[str]:
    return [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.has_location and spec.origin else ())]
