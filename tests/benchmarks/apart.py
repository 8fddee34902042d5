"""Runs a function in a new Python process.

The cost of the garbage collector grows with the memory of a process. After importing the whole test suite, it slows
bare threads to a third and ours to two thirds, which makes their ratio twice as good as in any real program.
"""

from __future__ import annotations

import importlib
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def apart(measure: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call `measure`, a function of a module, in a new process that imports only that module; return its result.

    Raises:
        subprocess.CalledProcessError: the function failed; its traceback is on stderr.
    """
    return apart_in(sys.executable, measure, *args, **kwargs)


def apart_in(python: str, measure: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Do the same with the Python of another environment."""
    call = pickle.dumps((measure.__module__, measure.__qualname__, args, kwargs))
    done = subprocess.run([python, "-m", __name__], input=call, check=True, stdout=subprocess.PIPE)
    result: R = pickle.loads(done.stdout)
    return result


if __name__ == "__main__":
    result_file = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # What libraries print is not part of the result.
    module, name, its_args, its_kwargs = pickle.load(sys.stdin.buffer)
    measured = getattr(importlib.import_module(module), name)(*its_args, **its_kwargs)
    with result_file:
        pickle.dump(measured, result_file)
