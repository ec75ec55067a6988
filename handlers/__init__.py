"""Handlers: they decide what an event changes, in one transaction and without other I/O."""
