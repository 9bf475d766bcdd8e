"""Measured claims: every figure that the README names comes from a command in here (`python -m benchmarks NAME --json FILE`)."""
