"""Training a network for a chip: a twin in which every batch meets another chip."""
