"""Python source as a tree. Imports nothing of ours."""

from __future__ import annotations

import ast
import gc


def parse(source: str) -> ast.Module:
    """As `ast.parse`, which on Python 3.11 miscounts its own depth when garbage is collected meanwhile and a finalizer formats a
    traceback: that parses, too."""
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        gc.enable()
