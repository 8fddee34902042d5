"""The guide's code, run as it is written: what is changed in it, and the time that its sleeps take."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.waiting import PATIENCE

GUIDE = Path(__file__).with_name("guide") / "blocks.md"

AS_READ_HERE = {
    "core.": "executor_adapter.",
    "datetime.utcnow()": "datetime.now(UTC)",
}
"""All that is changed in the guide's code: where it is imported from, and naive times of day."""


@dataclass(frozen=True)
class Block:
    """One block of the guide, under its headings."""

    heading: str
    language: str
    text: str

    @property
    def code(self) -> str:
        code = self.text
        for written, read in AS_READ_HERE.items():
            code = re.sub(rf"\b{re.escape(written)}", read, code)
        return code

    def run(self, **surroundings: Any) -> dict[str, Any]:
        """Run a block that awaits nothing at its top; the names that it and its surroundings define."""
        names = {"__name__": "guide", **surroundings}
        exec(compile(self.code, self.heading, "exec"), names)
        return names

    async def run_async(self, **surroundings: Any) -> dict[str, Any]:
        """Run a block that awaits at its top, as a notebook would."""
        names = {"__name__": "guide", **surroundings}
        awaiting = eval(compile(self.code, self.heading, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)
        assert inspect.iscoroutine(awaiting), f"{self.heading} awaits nothing"
        await awaiting
        return names


def read_blocks() -> dict[str, Block]:
    """The guide's blocks by their headings: `Section / Subsection`."""
    found: dict[str, Block] = {}
    section = subsection = ""
    for match in re.finditer(r"^## ([^\n]+)$|^### ([^\n]+)$|^```(\w+)\n(.*?)^```$", GUIDE.read_text(), re.M | re.S):
        if match[1]:
            section = match[1]
        elif match[2]:
            subsection = match[2]
        else:
            heading = f"{section} / {subsection}"
            assert heading not in found, f"two blocks under {heading}"
            found[heading] = Block(heading, match[3], match[4])
    return found


class LeapingLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock can be moved: a sleep of an hour ends when an hour is leaped over."""

    _leaped = 0.0

    def time(self) -> float:
        return super().time() + self._leaped

    def leap(self, seconds: float) -> None:
        """Let so much time have passed. What sleeps for no longer wakes up."""
        self._leaped += seconds


def run(main: Callable[[LeapingLoop], Coroutine[Any, Any, None]]) -> None:
    """Run `main` on a loop whose clock it may move."""

    async def bounded() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, LeapingLoop)
        await main(loop)

    with asyncio.Runner(loop_factory=LeapingLoop) as runner:
        runner.run(bounded())


async def until(condition: Callable[[], Any]) -> None:
    """Let others run until the condition holds."""
    ends = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends, "the condition did not come true"
        await asyncio.sleep(0.005)
