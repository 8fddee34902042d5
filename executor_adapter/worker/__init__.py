"""The worker's side of a process pool. It runs in every child process, so it imports the standard library alone."""
