"""The flows of the demo, one file for each entry point: two that are written here, and two of the package.

`python -m flows.collection` runs one, in the root of the clone. There, and where a worker of Prefect or `serve.py` runs
it, the modules that config.yaml names are found.
"""
