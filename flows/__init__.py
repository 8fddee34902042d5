"""The flows, one file per entry point. Each file can be run by its path, so it first adds the project to sys.path."""
