"""Limits of tools: how many of their jobs run at once, and how many start in a second."""
