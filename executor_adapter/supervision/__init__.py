"""Supervision: one thread decides what happens to every job. `supervisor.Supervisor` is the place to start reading."""
