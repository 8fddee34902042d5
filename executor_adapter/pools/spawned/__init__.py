"""The process pool of systems other than Linux: each worker is an interpreter of its own, spawned by the host.

    supervisor's thread                 worker (one process each)
    SpawnedPool ── SpawnedWorkerHandle ──► reads a call, sends STARTED, runs it, writes its result whole
                                one socket, two pipes, one lifeline

It keeps the promises of `pools.guardian` with what every Unix has. Each worker runs one call at a time, has a session
and process group of its own, and is ended by SIGTERM, a grace period and SIGKILL. Two workers share no lock, queue or
pipe, so the death of one cannot leave any of these broken for another. `__main__` is not imported.

**Starting.** Workers are started when they are needed, and one more than that (at most max_workers + 1), so that there
is a worker soon after one is killed. An assignment waits in the pool until a worker is ready, and counts as started
when it is sent.

**Dying.** A worker's death is seen by the end of its socket, and then by waiting for its process; if a forked process
holds the socket open, within LIVENESS_INTERVAL seconds. What the worker had written is read first. If it had sent
STARTED, the attempt CRASHED, otherwise the assignment is handed back. From the third time in a row on, a worker that
dies before it is ready takes an assignment with it: otherwise a failing initializer would be tried forever.

**Weaker than under the guardian:**

- A process that leaves the worker's process group (with a session of its own, or a daemon forked twice) is not found,
  and lives on.
- When the host is killed, a worker ends as soon as its watching thread gets the GIL. A worker that is in C code for a
  minute ends after that minute.
- A new worker takes the start of an interpreter (about 0.1 s, and the imports of the preload list), not milliseconds.
- There is no memory_limit and no max_rss_growth, since other systems do not show how much memory a process tree holds.
  The peak memory of an attempt is that of its worker so far.
- Each short job costs a round trip, since a worker gets one call at a time.
- Without memory files (macOS) large values are sent through the socket: copied, and at most 4 GiB.
"""
