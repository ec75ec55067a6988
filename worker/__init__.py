"""Execution of commands: each job under a lease, its outcome as an event. Decisions are made in handlers."""
