"""Measures memory: what the control group and the machine have left, and what a tree of processes holds."""
