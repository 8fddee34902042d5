"""Shows jobs as task runs without a task engine for each: `run_jobs` and `PrefectMirror`."""
