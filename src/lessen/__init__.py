"""Takes a trained network, returns the smallest one that still does its job, with the evidence."""

__version__ = "0.1.0"
