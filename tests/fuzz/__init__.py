"""Nonsense in great numbers: at the bus, at the outbox and at the API of a running service. `make fuzz` runs it in full."""
