"""Events on our objects, as `kubectl describe` shows them; used by `objects`.

What is said again within the hour counts up one Event instead of making many, and is written at most once a minute.
"""

import time
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from tollway_operator.cluster.api import Api
from tollway_operator.errors import Gone
from tollway_operator.ports import Raw

COMPONENT = "tollway-operator"
_REMEMBERED = 4096
_SAME_FOR = 3600.0  # the API server forgets Events after an hour
_QUIET = 60.0
_LONGEST = 1024  # of a message; the API server refuses longer ones


@dataclass(slots=True)
class _Said:
    path: str
    count: int
    first: float
    written: float


class EventRecorder:
    def __init__(self, api: Api, api_version: str) -> None:
        self._api = api
        self._api_version = api_version
        self._said: OrderedDict[tuple[str, str, str], _Said] = OrderedDict()

    async def record(self, target: Raw, type_: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        message = message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"
        key = (target.uid, reason, message)
        now = time.monotonic()
        said = self._said.get(key)
        if said is not None and now - said.first < _SAME_FOR:
            said.count += 1
            if now - said.written < _QUIET:
                return
            said.written = now
            try:
                await self._api.merge(said.path, {"count": said.count, "lastTimestamp": _now()})
            except Gone:
                del self._said[key]  # deleted by hand: said anew
            else:
                return
        await self._create(key, target, type_, reason, message)

    async def _create(self, key: tuple[str, str, str], target: Raw, type_: str, reason: str, message: str) -> None:
        path = f"/api/v1/namespaces/{target.namespace}/events"
        name = f"{target.name[:200]}.{uuid.uuid4().hex[:16]}"
        stamp = _now()
        await self._api.create(
            path,
            {
                "apiVersion": "v1",
                "kind": "Event",
                "metadata": {"name": name, "namespace": target.namespace},
                "involvedObject": {
                    "apiVersion": self._api_version,
                    "kind": target.kind,
                    "namespace": target.namespace,
                    "name": target.name,
                    "uid": target.uid,
                    "resourceVersion": target.resource_version,
                },
                "type": type_,
                "reason": reason,
                "message": message,
                "source": {"component": COMPONENT},
                "reportingComponent": COMPONENT,
                "reportingInstance": "",
                "count": 1,
                "firstTimestamp": stamp,
                "lastTimestamp": stamp,
            },
        )
        now = time.monotonic()
        self._said[key] = _Said(f"{path}/{name}", 1, now, now)
        if len(self._said) > _REMEMBERED:
            self._said.popitem(last=False)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
