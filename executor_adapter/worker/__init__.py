"""The worker's side of a process pool: it runs in every child process, so it imports the standard library alone."""
