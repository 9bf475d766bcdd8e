"""Analog compute-in-memory: one description of a chip, and from it accuracy over time, energy, latency and area."""
