"""Ends on the server what a killed process has left unfinished: task runs, and flow runs if nobody else does."""
