"""Starts further interpreters that run nothing but what the program itself would run.

An interpreter that runs a program given as text (`-c`) looks for modules in the working directory first: a `pickle.py`
there would run in it. So it is started without that (`-P`), and with the program's own flags. It imports this package
from where the program has it, and gets the program's sys.path only then.
"""

from __future__ import annotations

import os
import sys

_PACKAGE_PARENT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_FLAGS = (
    ("debug", "d"),
    ("optimize", "O"),
    ("dont_write_bytecode", "B"),
    ("no_user_site", "s"),
    ("no_site", "S"),
    ("ignore_environment", "E"),
    ("verbose", "v"),
    ("bytes_warning", "b"),
    ("isolated", "I"),
)
"""Fields of sys.flags, and the letters that set them; `-u` cannot be read, and workers write each line at once."""

_FIND_PACKAGE = (
    "import os, sys\n"
    "library = os.path.dirname(os.__file__)\n"
    # After the standard library, which no other folder may hide, and before what is installed.
    "places = [n for n, e in enumerate(sys.path, 1) if e in (library, os.path.join(library, 'lib-dynload'))]\n"
    f"sys.path.insert(max(places, default=0), {_PACKAGE_PARENT!r})\n"
)

CALL_MAIN = (
    "import importlib, pickle\n"
    "setup = pickle.load(sys.stdin.buffer)\n"
    "main = importlib.import_module('executor_adapter.worker.' + sys.argv[1]).main\n"
    "sys.path[:] = setup['path']\n"
    "main([int(fd) for fd in sys.argv[2:]], setup)\n"
)
"""A program that calls `main(fds, setup)` of a module beside this one. The program's `__main__` is not imported."""


def interpreter_command(program: str, *arguments: str) -> list[str]:
    """Return the command that runs the text `program`, which can import this package.

    The program has to set sys.path to the path of its parent before it imports anything of the user's.
    """
    return [sys.executable, *interpreter_flags(), "-c", _FIND_PACKAGE + program, *arguments]


def interpreter_flags() -> list[str]:
    """Return the flags of this interpreter, and `-P`."""
    flags = ["-P"]
    for field, letter in _FLAGS:
        if count := int(getattr(sys.flags, field)):
            flags.append("-" + letter * count)
    flags += [f"-W{option}" for option in sys.warnoptions]
    for name, value in sys._xoptions.items():  # noqa: SLF001  documented so
        flags += ["-X", name if value is True else f"{name}={value}"]
    return flags
