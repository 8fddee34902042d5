"""Run scripts one after another in one process, each as a program of its own would run: what they import is slow.

    python run_scripts.py DIRECTORY...

In each directory it runs `script.py` as `__main__`, in that directory, and leaves what was printed as `stdout` and
`stderr`, and the exit code as `exit_code`.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from pathlib import Path


def run(directory: Path) -> None:
    """Run the script of one directory; anything that it prints, also from child processes, goes into its files."""
    os.chdir(directory)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(directory / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    try:
        runpy.run_path(str(directory / "script.py"), run_name="__main__")
        exit_code = 0
    except SystemExit as ended:
        exit_code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
        exit_code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    (directory / "exit_code").write_text(str(exit_code))


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        run(Path(argument))
