"""Creates what deployments need on a Prefect server: work pool, queues, limits, variables, blocks, automations."""
