"""The program of an agent that ssh starts: it serves its head over stdin and stdout."""

from __future__ import annotations

import logging
import os
import sys

from executor_adapter.pools.cluster import frames
from executor_adapter.pools.cluster.agent import Agent
from executor_adapter.pools.cluster.descriptions import print_description
from executor_adapter.pools.cluster.link import PipeEnd, take_stdio


def main() -> int:
    """Serve a head over stdin and stdout, or print what this node is. Return the exit code."""
    if sys.argv[1:] == ["--describe"]:
        return print_description()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    read_fd, write_fd = take_stdio()
    os.write(write_fd, frames.START)
    agent = Agent(PipeEnd(read_fd, write_fd), held_fds=(write_fd,))
    agent.run()
    if agent.refusal:
        print(agent.refusal, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
