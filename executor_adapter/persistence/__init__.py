"""Persistence: what an executor writes to its store, and how jobs are recovered from it."""
