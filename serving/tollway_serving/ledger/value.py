"""How the ledger's plain values are made; used by `ops`, the modules that decide on them, and the gateway."""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def value(cls: type[T]) -> type[T]:
    """A dataclass that is frozen to the type checker only: one that is frozen at run time takes three times as long to
    make, and each request makes a dozen."""
    return dataclass(slots=True)(cls)
