"""Runs many jobs as task runs of one flow, without a task engine for each."""
