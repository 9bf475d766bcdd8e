"""Walks over a model: collect, decide, keep on disk, go on where a killed run was."""
