"""What the demo adds to the package: the rules of its tables, and what its report says of them."""
