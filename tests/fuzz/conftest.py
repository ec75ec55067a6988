"""Fixtures of the fuzzing runs: the world of the end-to-end tests."""

from __future__ import annotations

from tests.e2e.conftest import engine, world

__all__ = ["engine", "world"]
