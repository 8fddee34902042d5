"""What jobs need beside a slot, and who holds it: of this machine, or of the nodes of a cluster."""
