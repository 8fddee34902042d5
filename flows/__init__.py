"""The flows of the demo, one file per entry point: those of the package, with the modules of this project."""
