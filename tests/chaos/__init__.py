"""Chaos: the real service on either engine is killed, frozen or made to fail at failpoints, and an audit checks the outcome."""
