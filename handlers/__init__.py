"""Handlers: they decide what an event changes, without I/O."""
