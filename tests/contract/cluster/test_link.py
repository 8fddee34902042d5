"""Tests the stream between a head and an agent: frames, and large values in chunks between them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from unittest.mock import Mock

import pytest

from executor_adapter.pools.cluster import agent, frames
from executor_adapter.pools.cluster.link import CHUNK_BYTES, ArrivingFiles, Link, PipeEnd, SocketEnd
from executor_adapter.pools.loop import SupervisorLoop
from executor_adapter.worker import values, wire
from tests.insides import plain_loop
from tests.waiting import PATIENCE


class Pair:
    """Two links to one another on one loop, and what the second one has received."""

    def __init__(self) -> None:
        self.loop = plain_loop()
        self.received: list[wire.Frame] = []
        self.lost: list[str] = []
        ours, theirs = socket.socketpair()
        self.sender = self.link(SocketEnd(ours), "sender")
        self.receiver = self.link(PipeEnd(os.dup(theirs.fileno()), os.dup(theirs.fileno())), "receiver")
        theirs.close()

    def link(self, end: SocketEnd | PipeEnd, name: str) -> Link:
        loop: SupervisorLoop = self.loop
        return Link(loop, end, self.received.extend, lambda: self.lost.append(name))  # type: ignore[arg-type]

    def until(self, condition: Callable[[], object]) -> None:
        ends = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < ends
            self.loop.run_due()
            time.sleep(0.002)

    def kinds(self) -> list[tuple[int, int]]:
        return [(kind, seq) for kind, _, _, seq, *_ in self.received]


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.sender.close()
    made.receiver.close()
    made.loop.close()


def memory_file(size: int) -> values.MemoryFile:
    fd = os.memfd_create("test")
    os.truncate(fd, size)
    return values.MemoryFile(fd, b"")


def test_frames_arrive_in_order_and_whole(pair: Pair) -> None:
    """Frames of any size arrive in the order in which they were sent."""
    bodies = [bytes([n]) * size for n, size in enumerate((0, 1, 100, 700_000, 3, 2_000_000))]
    for seq, body in enumerate(bodies):
        pair.sender.send(wire.pack_frame(wire.MESSAGE, seq=seq, body=body))
    pair.sender.flush()
    pair.until(lambda: len(pair.received) == len(bodies))
    assert [frame[-1] for frame in pair.received] == bodies


def test_a_frame_waits_for_one_chunk_at_most(pair: Pair) -> None:
    """A frame that is sent while large values are on their way overtakes all but the chunk that is being sent."""
    for seq in (1, 2):
        pair.sender.send_file(seq, memory_file(20 * CHUNK_BYTES), wire.pack_frame(wire.CALL, seq=seq))
    pair.sender.flush()
    pair.until(lambda: pair.received)
    before = len(pair.received)
    pair.sender.send(wire.pack_frame(frames.STOP, seq=7))
    pair.sender.flush()
    pair.until(lambda: (wire.CALL, 2) in pair.kinds())
    kinds = pair.kinds()
    assert kinds.index((frames.STOP, 7)) <= before + 2
    assert {seq for kind, seq in kinds[:8] if kind == frames.FILE} == {1, 2}, "large values take turns"
    assert kinds.index((wire.CALL, 1)) > kinds.index((frames.STOP, 7))


def test_a_large_value_arrives_as_it_was(pair: Pair) -> None:
    """The chunks of a value make up the same memory file, before the frame that needs it."""
    content = os.urandom(2 * CHUNK_BYTES + 12345)
    fd = os.memfd_create("test")
    os.write(fd, content)
    pair.sender.send_file(5, values.MemoryFile(fd, b""), wire.pack_frame(wire.CALL, seq=5))
    pair.sender.flush()
    pair.until(lambda: (wire.CALL, 5) in pair.kinds())
    files = ArrivingFiles()
    for kind, _, _, seq, _, _, _, body in pair.received:
        if kind == frames.FILE:
            files.add(seq, body)
    taken = files.take(5)
    assert os.read(taken, len(content) + 1) == content
    os.close(taken)
    assert files.take(6) == -1


def test_a_large_value_that_its_function_has_emptied_ends_no_link(pair: Pair) -> None:
    """The frame that needs it arrives, and what is sent after it."""
    pair.sender.send_file(5, memory_file(0), wire.pack_frame(wire.CALL, seq=5))
    pair.sender.flush()
    pair.until(lambda: (wire.CALL, 5) in pair.kinds())
    pair.sender.send(wire.pack_frame(frames.STOP, seq=7))
    pair.sender.flush()
    pair.until(lambda: (frames.STOP, 7) in pair.kinds())


def test_a_stream_that_makes_no_sense_is_lost(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """What else has arrived with a frame that cannot be read would never be read: whoever waits for it is told."""

    def read(arrived: list[wire.Frame]) -> None:
        raise IndexError(f"{len(arrived)} frames that nobody understands")

    ours, theirs = socket.socketpair()
    sender = pair.link(SocketEnd(ours), "sender")
    receiver = Link(pair.loop, SocketEnd(theirs), read, lambda: pair.lost.append("receiver"))  # type: ignore[arg-type]
    sender.send(wire.pack_frame(frames.STOP, seq=7))
    sender.flush()
    pair.until(lambda: len(pair.lost) == 2)
    assert pair.lost == ["receiver", "sender"]
    assert "1 frames that nobody understands" in caplog.text
    assert not receiver.is_open


def test_a_value_that_is_not_needed_is_not_sent_to_its_end(pair: Pair) -> None:
    """The rest of a cancelled value and its frame are left out, and the receiver is told to drop what it has."""
    pair.sender.send_file(1, memory_file(20 * CHUNK_BYTES), wire.pack_frame(wire.CALL, seq=1))
    pair.sender.flush()
    pair.until(lambda: pair.received)
    assert pair.sender.cancel_file(1)
    assert not pair.sender.cancel_file(1)
    pair.sender.flush()
    pair.until(lambda: (frames.DROP_FILE, 1) in pair.kinds())
    assert (wire.CALL, 1) not in pair.kinds()
    assert not pair.sender.unsent_files


def test_the_end_of_a_stream_is_reported_once(pair: Pair) -> None:
    """A link whose other end is closed says so once, and drops what it is told to send."""
    pair.sender.close()
    pair.until(lambda: pair.lost)
    pair.loop.run_due()
    assert pair.lost == ["receiver"]
    pair.receiver.send(wire.pack_frame(frames.BEAT))
    pair.receiver.flush()
    assert not pair.receiver.has_unsent_frames


def test_a_pipe_that_nobody_reads_any_more_ends_the_link(pair: Pair) -> None:
    """The link ends at once, and the loop does not turn without pause until something is sent."""
    (read_fd, their_write_fd), (their_read_fd, write_fd) = os.pipe(), os.pipe()
    pair.link(PipeEnd(read_fd, write_fd), "pipe")
    os.close(their_read_fd)
    pair.until(lambda: pair.lost)
    os.close(their_write_fd)
    assert pair.lost == ["pipe"]


def test_an_agent_that_its_head_does_not_set_up_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the head has died after the agent's proof, a relayed link stays open: the agent ends in time, with why."""
    monkeypatch.setattr(agent, "SETUP_TIMEOUT", 0.0)
    head, theirs = socket.socketpair()
    with head, contextlib.closing(SocketEnd(theirs)) as end:
        waiting = agent.Agent(end)
        waiting.run()
        assert head.recv(1 << 16), "it has said who it is"
    assert waiting.failure == "its head did not set it up within 0 s"


def test_an_agent_starts_nothing_while_many_large_results_are_unsent(monkeypatch: pytest.MonkeyPatch) -> None:
    """While large results hold so many descriptors that a further one may get none, attempts wait at an agent."""
    monkeypatch.setattr(values, "MAX_OPEN_FILES", 1)
    head, theirs = socket.socketpair()
    with head, contextlib.closing(SocketEnd(theirs)) as end:
        node = agent.Agent(end)
        node.slots, node._pool = 1, Mock(busy=0)  # noqa: SLF001
        node.queue.append(Mock(seq=3, is_on_lease=False))
        for seq in (1, 2):
            node.link.send_file(seq, memory_file(20 * CHUNK_BYTES), wire.pack_frame(wire.RETURNED, seq=seq))
        node.loop.run_due()
        assert len(node.queue) == 1
        node.link.cancel_file(1)
        node.loop.run_due()
        assert not node.queue
        node.loop.close()
