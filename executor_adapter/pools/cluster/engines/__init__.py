"""The engines that place leases on their nodes: Dask and Ray."""
