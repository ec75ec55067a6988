"""Fuzzing: malformed input in large numbers for the bus, the outbox and the API of a running service. `make fuzz` runs it in
full.
"""
