"""The process pool: workers that can be killed, that crash alone, and that use every core.

    supervisor's thread                guardian (one small process)      worker (one process each)
    ProcessPool ── GuardianLauncher ───► forks and reaps ───────────────► reads a call, takes its ticket,
         └───────── WorkerHandle ◄───── one socket, tickets, two pipes ──► runs it, writes its result whole

There is one pool, one set of workers and one handle of a worker. `launch_guardian` (Linux) and `launch_spawn` (every
Unix) start the processes of workers and see their ends. Two workers share no lock, queue or pipe, so the death of one
cannot leave any of these broken for another.

**Starting.** The guardian is started with the first worker. Workers are started when they are needed, and one more than
were ever busy at once (at most max_workers + 1), so that there is a worker at once when one is killed. A worker gets
its assignment before it is ready: its socket holds the call until then. The first call of a ready worker counts as
started when it is sent, the call behind it when the results before it are read and its own has not come with them;
results carry the exact times. What the system refuses (a process, a descriptor) is tried again, see `StartingPool`.

**Stopping.** `stop` takes back a call that has not started (see `worker.process`: tickets). Otherwise the worker's
process group gets SIGTERM, and the worker SIGKILL after the grace period. The attempt has ended when the guardian
reports that nothing below the worker is alive. A function that ended before it was asked to is reported as it ended.
Kills run side by side. A worker that was asked to stop is not used again.

**Dying.** The guardian reports how a worker exited and that everything it started is dead. What the worker had written
is read first; then the tickets that are left show which calls it had started: the last of them CRASHED, the others are
handed back. From the third time in a row on, a worker that dies before it is ready takes its first assignment with it:
otherwise a failing initializer would be tried forever. If the guardian dies, the kernel kills its workers, and what
they had started is found by a mark in its environment (`process_tree.kill_marked`). The next worker that is needed
starts another guardian.

**What stays in a worker.** What a function leaves behind (processes, threads, changed globals) stays until its worker
is stopped or replaced (`max_jobs_per_worker`, `max_rss_growth`), as in any pool that reuses processes. A job with a
memory limit is not given to a worker in which much is left. All descriptors of the host are close-on-exec. A process
that the host forks without exec holds copies of them. These do no harm: shutting a worker's socket down asks
it to exit, and the guardian watches the host itself.

The guardian needs Linux 5.4 or later: other systems have no pidfds, eventfds, memfds and subreapers.

**Spawned workers** are interpreters of their own, started by the host, with what every Unix has. `__main__` is not
imported. Their tickets are in a pipe, whose end tells a worker that its host has died. Since they start slowly, a call
is sent when its worker is ready: until then it is taken back at once. A worker's death is seen by the end of its
socket, and then by waiting for its process; if a forked process holds the socket open, within MAX_CHECK_INTERVAL
seconds. Weaker than under the guardian:

- A process that leaves the worker's process group (with a session of its own, or a daemon forked twice) is not found,
  and lives on.
- When the host is killed, a worker ends as soon as its watching thread gets the GIL. A worker that is in C code for a
  minute ends after that minute.
- A new worker takes the start of an interpreter (about 0.1 s, and the imports of the preload list), not milliseconds.
- There is no memory_limit and no max_rss_growth, since other systems do not show how much memory a process tree holds.
  The peak memory of an attempt is that of its worker so far.
- Without memory files (macOS) large values are sent through the socket: copied, and at most 4 GiB.
"""
