"""Submits tasks of a flow as jobs: JobTaskRunner, and the companion that runs job tasks beside another runner."""
