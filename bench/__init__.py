"""Measurements, run by hand. Each prints a small table together with the load of the machine."""
