"""Makes workers the kernel's preferred victims when memory runs out. Harmless on systems that have no such score."""

from __future__ import annotations

import contextlib

_SCORE_FILE = "/proc/self/oom_score_adj"
_RAISE = 500
"""Half of the memory counts as used by the process in addition, see proc_pid_oom_score_adj(5)."""
_MAX_SCORE = 1000


def become_preferred_victim() -> None:
    """Let the kernel prefer the calling process, and what it starts, to its host when it kills for lack of memory."""
    # Other systems have no such file; in a sandbox it may be read-only.
    with contextlib.suppress(OSError, ValueError), open(_SCORE_FILE, "r+") as file:
        raised = min(int(file.read()) + _RAISE, _MAX_SCORE)
        file.seek(0)
        file.write(str(raised))
