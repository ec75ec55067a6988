"""Executes commands: each job under a lease, its outcome as an event. Never decides what happens next."""
