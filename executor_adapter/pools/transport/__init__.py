"""Shared by both process pools: encoding of calls, worker sockets and output, and the report of results."""
