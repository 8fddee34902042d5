"""Tests who may connect to a program that listens for agents."""

from __future__ import annotations

import os
import pickle
import re
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from queue import Queue
from typing import Any
from unittest.mock import Mock

import pytest
from pytest_mock import MockerFixture

from executor_adapter.config import ClusterSettings
from executor_adapter.exceptions import JobSerializationError
from executor_adapter.pools.cluster import handshake
from executor_adapter.pools.cluster.engines import agent_process, leases
from executor_adapter.pools.cluster.engines.agent_process import AgentProcess, DataServer
from executor_adapter.pools.cluster.engines.ray_node import NodeActor
from executor_adapter.pools.cluster.frames import hello, refusal
from executor_adapter.pools.cluster.handshake import MAX_GUESTS, Door, advertised, ports_of, prove, relay
from executor_adapter.pools.cluster.node_data import VARIABLE, Kept, fetch, keep, receive, send
from executor_adapter.worker import wire
from tests.waiting import PATIENCE, wait_for

TOKEN = b"t" * 32


class Listening:
    """A door whose calls are made at once."""

    def __init__(self, ports: tuple[int, ...] = (0,)) -> None:
        self.accepted: list[socket.socket] = []
        self.door = Door(lambda call, sock: call(sock), "127.0.0.1", TOKEN, self.accepted.append, ports=ports)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.door.address)


@pytest.fixture
def listening() -> Iterator[Listening]:
    made = Listening()
    yield made
    made.door.close()
    for sock in made.accepted:
        sock.close()


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({}, "^$"),
        ({"protocol": 0}, "^node far has another version of prefect-executor-adapter: install the same one on both$"),
        ({"python": "3.9"}, r"^node far has Python 3\.9, and this program 3\.\d+: use the same on both$"),
        ({"missing": "it has no pidfd"}, "^node far cannot run jobs: it has no pidfd$"),
    ],
)
def test_why_an_agent_cannot_be_used_is_said(said: dict[str, Any], why: str) -> None:
    """An agent of another version or Python, or of a system that lacks something, is refused with what to do."""
    assert re.search(why, refusal("far", hello("far") | said))


@pytest.mark.parametrize("answer", [b"x" * 64, b"", b"x" * 10], ids=["wrong", "silent", "short"])
def test_a_connection_that_does_not_know_the_token_is_closed(listening: Listening, answer: bytes) -> None:
    """What connects without the token gets no agent: only its 64 bytes of proof are ever read."""
    with listening.connect() as sock:
        sock.sendall(answer)
        sock.shutdown(socket.SHUT_WR)
        wait_for(lambda: _is_closed(sock))
    assert listening.accepted == []


def test_one_that_says_nothing_is_closed_after_a_while(listening: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle connection keeps its descriptor for the time of a handshake at most, whatever it sends byte by byte."""
    monkeypatch.setattr(handshake, "HANDSHAKE_TIMEOUT", 0.2)
    with listening.connect() as silent, listening.connect() as slow:
        wait_for(lambda: _is_closed(silent))
        wait_for(lambda: not slow.send(b"x") or _is_closed(slow))


def test_an_agent_is_accepted_once_the_system_starts_threads_again(
    listening: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that connects while no thread can be started is closed, so that it is started again; later ones come in."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with listening.connect() as refused:
            wait_for(lambda: _is_closed(refused))
    with listening.connect() as agent:
        prove(agent, TOKEN)
        wait_for(lambda: listening.accepted)


class OneValue:
    """A store of an engine that holds a single value."""

    def fetch(self, name: Any) -> Any:
        return f"value of {name}"

    def keep(self, name: str, value: Any) -> Kept:
        raise NotImplementedError


def test_the_data_of_a_node_is_served_once_the_system_starts_threads_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that asks while no thread can be started gets an error, and later ones get their values."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    server = DataServer(OneValue())
    try:
        monkeypatch.setenv(VARIABLE, server.address)
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises((EOFError, ConnectionError)):
                fetch("a", "a")
        assert fetch("b", "b") == "value of b"
    finally:
        server.close()


class NoValue:
    """A store of an engine that gives and keeps nothing of use."""

    def fetch(self, name: Any) -> Any:
        if name == "lost":
            raise LookupError("no worker has it")
        return threading.Lock()

    def keep(self, name: str, value: Any) -> Kept:
        raise ConnectionError("the scheduler has gone")


def test_what_a_node_cannot_give_or_keep_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose node cannot give it a value, or keep its result, gets an error that says why."""
    server = DataServer(NoValue())
    try:
        monkeypatch.setenv(VARIABLE, server.address)
        with pytest.raises(JobSerializationError, match=r"^it cannot be fetched: no worker has it$"):
            fetch("lost", "it")
        with pytest.raises(JobSerializationError, match=r"^it cannot be fetched: cannot pickle"):
            fetch("lock", "it")
        with pytest.raises(JobSerializationError, match=r"^the result cannot be kept on the cluster: the scheduler"):
            keep(1, "job", 1)
    finally:
        server.close()


def test_a_result_whose_worker_was_killed_meanwhile_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is killed while its node unpickles the result leaves nothing there: nobody would ever free it."""
    kept = list[str]()
    monkeypatch.setattr(NoValue, "keep", lambda store, name, value: kept.append(name))
    server = DataServer(NoValue())
    try:
        with socket.socket(socket.AF_UNIX) as worker:
            worker.connect("\0" + server.address)
            send(worker, ("keep", ("job", 1)), Slow())
            assert Slow.is_read.wait(PATIENCE)
        Slow.go_on.set()
    finally:
        server.close()
    wait_for(lambda: not data_threads())
    assert not kept


def data_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "executor-adapter-data"]


class Slow:
    """A value whose unpickling on a node takes until the test goes on."""

    is_read, go_on = threading.Event(), threading.Event()

    def __reduce__(self) -> tuple[Callable[[], Any], tuple[()]]:
        return Slow.unpickle, ()

    @staticmethod
    def unpickle() -> None:
        if threading.current_thread() is not threading.main_thread():  # There it is checked before it is sent.
            Slow.is_read.set()
            assert Slow.go_on.wait(PATIENCE)


def test_an_agent_that_cannot_be_started_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system refuses another process, the lease is asked for again each second, with what is free then."""
    refuse = Mock(side_effect=BlockingIOError(11, "Resource temporarily unavailable"))
    monkeypatch.setattr(agent_process.subprocess, "Popen", refuse)
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(BlockingIOError):
            AgentProcess({}, "node7", OneValue(), Mock())
    wait_for(lambda: not data_threads())
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_node_may_answer_before_the_question_has_returned(mocker: MockerFixture) -> None:
    """On a busy node the answer is there, and the socket closed, before a worker goes on that has sent its question."""
    ours, theirs = socket.socketpair()
    send_fds = wire.send_fds

    def answered(sock: socket.socket, *message: Any) -> int:
        sent = send_fds(sock, *message)
        mocker.stop(patched)
        assert receive(theirs) == (("fetch", "it"), None)
        send(theirs, True, "value")
        theirs.close()
        return sent

    patched = mocker.patch.object(wire, "send_fds", answered)
    with ours:
        send(ours, ("fetch", "it"), None)
        assert receive(ours) == (True, "value")


@pytest.mark.parametrize("with_file", [True, False])
def test_a_broken_message_of_a_node_leaves_no_descriptor_and_is_said(with_file: bool) -> None:
    """A value whose head cannot be unpickled closes the file that came with it; one without its file says so."""
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    body = b"no pickle" if with_file else pickle.dumps("head", 5)
    wire.send_fds(theirs, wire.pack_frame(wire.MESSAGE, wire.IN_FILE, body=body), [writer] if with_file else [])
    os.close(writer)
    with ours, theirs, open(reader, "rb") as left:
        with pytest.raises(pickle.UnpicklingError if with_file else JobSerializationError, match=r"key|descriptor"):
            receive(ours)
        assert left.read() == b""


def test_an_agent_that_cannot_connect_is_relayed(listening: Listening) -> None:
    """Its stream comes through the engine's process to the door, proves itself there, and ends in order."""
    actor = NodeActor({"address": ["127.0.0.1", 1], "token": TOKEN.hex()}, "node7")  # It is one of Ray's elsewhere.
    assert actor.next_word() is None
    relay(listening.door.address, actor.read_link, actor.write_link)
    wait_for(lambda: listening.accepted)
    assert b"node7" in listening.accepted[0].recv(1000)
    listening.accepted[0].shutdown(socket.SHUT_WR)
    assert actor.next_word() == ""


def test_an_agent_that_nobody_relays_says_so() -> None:
    """An agent that its head cannot be reached by says where it has tried, and that the engine did not help."""
    words: list[str] = []

    def report(agent: AgentProcess, why: str | None) -> None:
        if why is None:
            agent.link.close()
        else:
            words.append(why)

    head = {"address": ["127.0.0.1", 1], "token": TOKEN.hex()}
    AgentProcess(head, "node7", OneValue(), report)
    wait_for(lambda: words)
    refused = "at 127.0.0.1, port 1 ([Errno 111] Connection refused), nor through its cluster: "
    assert words[0].startswith(f"the agent cannot reach its head {refused}")


@pytest.mark.parametrize("is_needed", [True, False])
def test_an_agent_that_takes_long_to_connect_is_killed_where_nobody_waits_for_it(*, is_needed: bool) -> None:
    """When a lease ends, an agent that has not connected may take any time to do so for the sake of another one."""
    words: list[str | None] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        head = {"address": list(server.getsockname()), "token": TOKEN.hex(), "lost_after": 0.0}
        agent = AgentProcess(head, "node7", OneValue(), lambda _, why: words.append(why))
        agent.hold(1)
        if is_needed:
            agent.hold(2)
        agent.end_if_stuck(1)
        if is_needed:
            server.accept()[0].close()
        wait_for(lambda: words)
        agent.link.close()
    assert ("the agent cannot reach its head" if is_needed else "the agent ended with code -9") in (words[0] or "")


@pytest.mark.parametrize(("answers_after", "is_killed"), [(14.0, False), (16.0, True)])
def test_an_agent_is_killed_when_it_is_silent_for_as_long_as_a_lost_node(
    listening: Listening, mocker: MockerFixture, answers_after: float, *, is_killed: bool
) -> None:
    """One that answers about a lease within `lost_after` seconds keeps its jobs; one that does not is ended."""
    words: list[str | None] = []
    head = {"address": list(listening.door.address), "token": TOKEN.hex(), "lost_after": 15.0}
    agent = AgentProcess(head, "node7", OneValue(), lambda _, why: words.append(why))
    assert agent.hold(-1).wait(PATIENCE)  # It answers, so it is connected.
    mocker.patch.object(agent, "hold").return_value.wait = lambda seconds: seconds >= answers_after
    agent.end_if_stuck(1)
    mocker.stopall()
    if not is_killed:
        assert agent.hold(-2).wait(PATIENCE)
        (accepted,) = wait_for(lambda: listening.accepted)
        accepted.shutdown(socket.SHUT_WR)
    wait_for(lambda: words)
    assert words == ["the agent ended with code -9, and does not say why" if is_killed else ""]


def test_idle_connections_take_few_descriptors_and_keep_nobody_out(listening: Listening) -> None:
    """Of many connections that prove nothing the oldest are closed, and an agent is accepted among them."""
    before = len(os.listdir("/proc/self/fd"))
    idle = [listening.connect() for _ in range(3 * MAX_GUESTS)]
    try:
        with listening.connect() as agent:
            prove(agent, TOKEN)
            wait_for(lambda: listening.accepted)
        wait_for(lambda: len(os.listdir("/proc/self/fd")) - before <= len(idle) + MAX_GUESTS + 2)
    finally:
        for sock in idle:
            sock.close()


def test_without_descriptors_it_waits_and_goes_on(listening: Listening) -> None:
    """Where no descriptor is left, no connection is accepted until there is one again."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket() as agent:
        resource.setrlimit(resource.RLIMIT_NOFILE, (agent.fileno() + 1, hard))
        try:
            agent.connect(listening.door.address)
            with pytest.raises(OSError, match="Too many open files"):
                socket.socket()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        prove(agent, TOKEN)
    wait_for(lambda: listening.accepted)


def test_the_first_free_port_of_a_range_is_taken(listening: Listening) -> None:
    """A port that another program has is passed over; where none is free, that is said."""
    taken = listening.door.address[1]
    other = Listening((taken, 0))
    other.door.close()
    assert other.door.address[1] != taken
    with pytest.raises(OSError, match="Address already in use"):
        Listening((taken, taken))


@pytest.mark.parametrize(
    ("listen_port", "ports", "advertise", "address"),
    [
        (None, [0], None, ["10.0.0.1", 7]),
        (8790, [8790], "jobs.example.com", ["jobs.example.com", 7]),
        ("8790-8792", [8790, 8791, 8792], "jobs.example.com:99", ["jobs.example.com", 99]),
    ],
)
def test_nodes_connect_to_what_the_settings_say(
    listen_port: int | str | None, ports: list[int], advertise: str | None, address: list[object]
) -> None:
    """`listen_port` is one or a range; `advertise` replaces the host, and the port where it names one."""
    assert list(ports_of(listen_port)) == ports
    assert advertised(advertise, "10.0.0.1", 7) == address


def _is_closed(sock: socket.socket) -> bool:
    sock.settimeout(0.01)
    try:
        while sock.recv(100):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_a_cluster_towards_which_no_address_is_found_refuses_its_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the address at which this machine is to listen cannot be found, the leases are refused, with why."""
    monkeypatch.setattr(leases, "host_towards", Mock(side_effect=socket.gaierror("no such name")))
    engine = Mock(connect=lambda: "far:8786", certificates=lambda: None, poll=lambda: None)
    pool = Mock(is_closing=False, engine=lambda *_: engine)
    pool.name, pool.supervisor.call_soon = "dask", lambda call, *args: call(*args)
    listening = leases.EngineLeases(pool, ClusterSettings(), dict, lambda: None)
    listening.ask([1])
    listening.close(closed := Mock())
    wait_for(lambda: closed.called)
    assert "cannot listen for agents on far:8786: " in pool.shapes.refuse_all.call_args.args[0]


def test_the_engine_is_looked_at_though_commands_never_cease() -> None:
    """Each command brings another one, as many short jobs do; what ends on the cluster is seen nevertheless."""
    looks = Queue[None]()
    engine = Mock(drop=lambda lease: listening.withdraw(lease), poll=lambda: looks.put(None))
    pool = Mock(engine=lambda *_: engine)
    pool.name = "dask"
    listening = leases.EngineLeases(pool, ClusterSettings(), dict, lambda: None)
    listening.withdraw(1)
    try:
        for _ in range(3):
            looks.get(timeout=PATIENCE)
    finally:
        listening.close(Mock())
