"""What both process pools share: encoding of calls, worker sockets and output, and the report of results."""
