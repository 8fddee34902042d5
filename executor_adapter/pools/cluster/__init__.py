"""Pools whose workers are on other machines: an unchanged process pool on each node, directed from here.

    client                                                         node
    Supervisor ── RemotePool ── RemoteAgent ══ link ══ Agent ── ProcessPool ── guardian ── workers
                      └── LeaseSource: where slots come from (SSH hosts, a Dask cluster)

An **agent** is one process on a node. It implements `base.PoolSupervisor` around a process pool of that node, so all
that the process pool promises holds there too. A **lease** is the right to run one attempt at a time on a node. A
`LeaseSource` obtains leases; where an engine has a scheduler, a lease is accounted for in that scheduler's books.
Attempts are never tasks of an engine, so its retries and its work stealing cannot run a job twice.

**Nothing runs twice.** The agent may run attempts only for `lost_after` seconds after it sent the newest beat that the
head has answered; then its guardian kills them, also where the agent itself is stopped. The head waits longer than that
before it gives up a silent agent. Guardian and workers hold the agent's end of the link, so where the agent dies, the
head sees the end of the link only when nothing there is alive.

**What had not begun goes back.** The agent reports which calls its workers are about to get (GIVEN) before they get
them. When the link of an agent ends, these attempts end as NODE_LOST, and all others are handed back. When an agent is
silent, nobody knows what it has reported: all its attempts end as NODE_LOST.

| module | holds |
| --- | --- |
| `frames` | what head and agent say to one another |
| `link`, `handshake` | the stream that carries frames and, in chunks, large values; who may open one; its relay |
| `pool`, `remote_agent` | the head's side |
| `agent`, `agent_program` | the node's side |
| `leases` | what a source of leases offers |
| `grants` | what attempts wait for, which agent gets one, and which leases go back |
| `references`, `node_data` | arguments and results that are data of an engine |
| `portable`, `program` | the program's modules, for nodes that lack them or have other ones |
| `ssh`, `engines` | leases on hosts that are reached by ssh, and of Dask and Ray |
| `descriptions` | what `doctor` says of nodes |
"""
