"""The worker's side of Prefect: the contexts that a function sees, and the log lines that it writes."""
