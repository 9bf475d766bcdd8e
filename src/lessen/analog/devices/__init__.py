"""Memory devices, one family a file."""
