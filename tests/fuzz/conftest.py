"""The world of the end-to-end tests, for runs that throw nonsense at it."""

from __future__ import annotations

from tests.e2e.conftest import engine, world

__all__ = ["engine", "world"]
