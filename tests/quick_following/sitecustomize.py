"""Imported by every Python process whose PYTHONPATH has this folder: the followers of a service with quick following."""

import os
from pathlib import Path

from tests import quick_following

quick_following.shorten()
if plan := os.environ.get("CHAOS_PLAN"):
    from tests.chaos import harness

    harness.install_in_follower(Path(plan))
