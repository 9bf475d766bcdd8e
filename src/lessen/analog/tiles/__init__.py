"""Layers on tiles: what a chip made of a matrix, how inputs become outputs, and the modules that hold both."""
