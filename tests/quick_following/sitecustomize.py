"""Imported by every Python process whose PYTHONPATH has this folder: the followers of a service with quick following."""

from tests import quick_following

quick_following.shorten()
