"""The pools that run functions in the host's own process: threads, and coroutines on an event loop."""
