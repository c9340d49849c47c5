"""Secrets as `objects` shows them: without values. Those that carry no label of ours are read one by one.

A label on a user's Secret makes the watch see it at once; without, it is read when first named and every five minutes
since, and sooner while it is missing, because a key and its Secret are often applied in either order.
"""

import asyncio
import base64
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tollway_operator.cluster.api import Api, Object
from tollway_operator.errors import Gone, OperatorError
from tollway_operator.keys import describe
from tollway_operator.ports import SecretView

Name = tuple[str, str]  # namespace, name

SECRETS = "/api/v1/namespaces/{}/secrets"

_REREAD = 300.0
_FIRST_MISSING = 2.0
_AT_ONCE = 16
_EARLY = 10.0  # what falls due within this is read with the rest, so that few passes are woken


@dataclass(slots=True)
class _Read:
    view: SecretView | None  # None: missing
    due: float
    misses: int = 0


class SecretReader:
    """`now` is a monotonic clock in seconds."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._known: dict[Name, _Read] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._planned = asyncio.Event()

    async def views(self, wanted: Collection[Name]) -> Mapping[Name, SecretView]:
        """The Secrets of these names that exist, reading those never seen; the others are forgotten. Raises what the
        reading raised, as nobody may conclude from that that a Secret is missing."""
        self._known = {name: read for name, read in self._known.items() if name in wanted}
        await asyncio.gather(*(self._read(name) for name in wanted if name not in self._known))
        return {name: read.view for name, read in self._known.items() if read.view is not None}

    async def refresh(self) -> bool:
        """Reads again what is due; whether anything is different. One that can't be read now keeps its last state."""
        horizon = time.monotonic() + _EARLY
        due = [name for name, read in self._known.items() if read.due <= (horizon if read.view else time.monotonic())]
        before = {name: self._known[name].view for name in due}
        await asyncio.gather(*(self._read(name) for name in due), return_exceptions=True)
        return any(name in self._known and self._known[name].view != view for name, view in before.items())

    async def due(self) -> None:
        """Waits until something is to be read again."""
        while True:
            self._planned.clear()
            wait = min((read.due for read in self._known.values()), default=float("inf")) - time.monotonic()
            if wait <= 0:
                return
            try:
                async with asyncio.timeout(None if wait == float("inf") else wait):
                    await self._planned.wait()
            except TimeoutError:
                return

    async def _read(self, name: Name) -> None:
        known = self._known.get(name)
        async with self._places:
            try:
                view = to_view(await self._api.get(f"{SECRETS.format(name[0])}/{name[1]}"))
            except Gone:
                misses = known.misses + 1 if known else 1
                delay = min(_REREAD, _FIRST_MISSING * 2.0 ** min(misses - 1, 10))
                self._known[name] = _Read(None, time.monotonic() + delay, misses)
            except OperatorError:
                if known is None:
                    raise
                known.due = time.monotonic() + _REREAD / 10
            else:
                self._known[name] = _Read(view, time.monotonic() + _REREAD)
        self._planned.set()


def to_view(body: Object) -> SecretView:
    meta = body["metadata"]
    owners = [owner for owner in meta.get("ownerReferences") or () if owner.get("kind") == "ApiKey"]
    return SecretView(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        labels=meta.get("labels") or {},
        owner_uid=owners[0]["uid"] if owners else None,
        created=seconds(meta["creationTimestamp"]),
        values={key: describe(decode(value)) for key, value in (body.get("data") or {}).items()},
    )


def seconds(timestamp: str) -> int:
    """Kubernetes' RFC 3339 as seconds since the epoch."""
    return int(datetime.fromisoformat(timestamp).timestamp())


def decode(value: str) -> str:
    """The text of a Secret's entry; bytes that aren't UTF-8 make no key that anyone could send."""
    return base64.b64decode(value).decode(errors="replace")


def encode(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def key_of(body: Mapping[str, Any], key: str) -> str | None:
    """One value of a Secret as the API gave it, for those few that may hold it in memory."""
    value = (body.get("data") or {}).get(key)
    return None if value is None else decode(value)
