"""The rooms put together: what `service.py` runs. Imports everything but the simulator; only `service.py` imports it."""
