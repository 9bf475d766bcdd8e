"""Chips with names, a TOML file each: what is published, and beside it what is assumed."""
