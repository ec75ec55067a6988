"""Python source as a syntax tree."""

from __future__ import annotations

import ast
import gc


def parse(source: str) -> ast.Module:
    """Like `ast.parse`, with a workaround: Python 3.11 miscounts its recursion depth if a garbage collection runs a finalizer
    that formats a traceback, which parses, too."""
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        gc.enable()
