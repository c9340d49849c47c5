"""What `store` asks of a database's hot path; implemented by `sqlite` and `postgres`."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tollway_serving.ledger.transaction import AnyOp, EntryFacts, Result

_CACHED_ENTRIES = 100_000


@dataclass(frozen=True, slots=True)
class Batch:
    """A committed transaction: one result for each operation, and the catalogue's revision that it saw."""

    results: list[Result]
    revision: int


class Backend(Protocol):
    """LedgerUnavailable from any method: whether a transaction was committed is then unknown."""

    async def connect(self) -> None: ...

    async def close(self) -> None: ...

    async def transact(self, ops: Sequence[AnyOp]) -> Batch: ...

    async def poll(self) -> int:
        """The catalogue's revision."""


@dataclass(slots=True)
class EntryCache:
    """Facts of catalogue rows, good for one revision: a batch that reads the same one needs no rows again."""

    revision: int = -1
    facts: dict[tuple[str, str], EntryFacts] = field(default_factory=dict)
    _absent: set[tuple[str, str]] = field(default_factory=set)

    def missing(self, revision: int, wanted: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
        if revision != self.revision or len(self.facts) + len(self._absent) > _CACHED_ENTRIES:
            self.facts.clear()
            self._absent.clear()
            self.revision = revision
        return [each for each in wanted if each not in self.facts and each not in self._absent]

    def put(self, kind: str, entry_id: str, facts: EntryFacts | None) -> None:
        if facts is None:
            self._absent.add((kind, entry_id))
        else:
            self.facts[kind, entry_id] = facts
