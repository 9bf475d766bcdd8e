"""Which chip? Spaces of designs, and the search for those that nothing else beats."""
