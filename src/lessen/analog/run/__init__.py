"""What the command line runs: a network with what judges it, the runs, and their record."""
