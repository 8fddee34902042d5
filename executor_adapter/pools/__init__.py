"""Where an attempt runs: coroutines, threads, processes, each behind `base.WorkerPool`."""
