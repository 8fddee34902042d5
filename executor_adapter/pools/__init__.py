"""The pools in which attempts run: coroutines, threads and processes, each a `base.WorkerPool`."""
