"""Drives one task run as one job: Prefect's task engines, with the attempts run by the executor."""
