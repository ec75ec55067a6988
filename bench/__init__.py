"""Measurements, run by hand: each prints a small table with the load of the machine beside it."""
