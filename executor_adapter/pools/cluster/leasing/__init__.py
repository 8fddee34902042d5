"""The books of a pool of leases: what attempts wait for, what is asked for, and what goes back."""
