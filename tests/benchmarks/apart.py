"""Runs a measurement in an interpreter of its own.

The collector's cost grows with all that a process holds. Where the whole test suite was imported before, it slows bare
threads to a third and ours to two thirds, which makes a ratio twice as good as any program would see.
"""

from __future__ import annotations

import importlib
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def apart(measure: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """What `measure`, a function of a module, gives in a fresh process that imported nothing but its module.

    Raises:
        subprocess.CalledProcessError: it failed; its traceback is on stderr.
    """
    call = pickle.dumps((measure.__module__, measure.__qualname__, args, kwargs))
    done = subprocess.run([sys.executable, "-m", __name__], input=call, check=True, stdout=subprocess.PIPE)
    result: R = pickle.loads(done.stdout)
    return result


if __name__ == "__main__":
    module, name, its_args, its_kwargs = pickle.load(sys.stdin.buffer)
    measured = getattr(importlib.import_module(module), name)(*its_args, **its_kwargs)
    sys.stdout.buffer.write(pickle.dumps(measured))
