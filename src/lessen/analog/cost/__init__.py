"""Energy, latency and area of a network on the chip that also decides its accuracy."""
