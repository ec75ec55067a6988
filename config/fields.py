"""Fields of the settings: how a variable is read, and what documents and faults say about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, SecretStr
from pydantic.config import JsonDict

from config import parsers

DURATION = "a duration such as 30, 30s, 15m, 72h or 7d, at most a century"


def read(reader: Callable[[str], Any]) -> BeforeValidator:
    """A validator that reads the text of a variable; a value from the program passes."""
    return BeforeValidator(lambda value: reader(value) if isinstance(value, str) else value)


def list_of(reader: Callable[[str], str]) -> BeforeValidator:
    """A validator that reads a comma-separated list."""
    return read(lambda text: tuple(reader(item) for item in parsers.items(text)))


def setting(name: str, default: Any, allowed: str, meaning: str, *, shown: str = "", **limits: Any) -> Any:
    """A field: variable, default, allowed values (shown in faults), meaning, and the default as shown in documents."""
    extra: JsonDict = {"allowed": allowed, "shown": shown}
    return Field(default=default, validation_alias=name, description=meaning, json_schema_extra=extra, **limits)


Seconds = Annotated[float, read(parsers.seconds)]
Keys = Annotated[dict[int, SecretStr], read(parsers.keys_by_application)]
