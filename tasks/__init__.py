"""The work of the pipeline. Sources, stages and the lake are plain functions; the rest turns them into job tasks."""
