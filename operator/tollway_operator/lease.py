"""Which of several operators works: a Lease of coordination.k8s.io, held by renewing it. Used by `main`.

A holder that can't renew stops its work well before others may take over. Clocks of machines are never compared: a
Lease counts as abandoned when it hasn't changed for its duration on our own monotonic clock.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import structlog

from tollway_operator.cluster.api import Api, Object
from tollway_operator.errors import Conflict, Gone, OperatorError

_log = structlog.get_logger()


class Lease:
    """`seconds` is its duration. A holder renews every fifth of it, and gives up when two thirds are over."""

    def __init__(self, api: Api, namespace: str, name: str, identity: str, seconds: float) -> None:
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._name = name
        self._identity = identity
        self._seconds = seconds
        self._seen: tuple[str, float] = ("", 0.0)  # resourceVersion, when we first saw it
        self._mine: Object | None = None  # the Lease as we last wrote it: renewed without reading it first
        self._until = 0.0  # the end of our right to work, on the monotonic clock
        self.trouble = ""
        """Why the Lease can't be read or written; empty while it can."""

    def is_held(self) -> bool:
        """Whether our work may still write: false at once in a process that was frozen for too long."""
        return time.monotonic() < self._until

    async def lead(self, work: Callable[[], Awaitable[None]], stop: asyncio.Event) -> None:
        """Does `work` whenever the Lease is ours, until `stop` is set (then `work` must end by itself) or `work` ends
        or raises. Work is cancelled at once when the Lease is lost."""
        while not stop.is_set():
            if not await self._acquire():
                with suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), self._seconds / 5)
                continue
            _log.info("lease_acquired", lease=self._name, identity=self._identity)
            task = asyncio.ensure_future(work())
            try:
                await self._keep(task)
            finally:
                self._until = 0.0
                if not task.done():
                    task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled():
                await self._release()
                return task.result()
            _log.warning("lease_lost", lease=self._name, error=self.trouble or "another replica holds it")
        return None

    async def _keep(self, task: "asyncio.Future[None]") -> None:
        """Renews until the work has ended or the Lease is lost."""
        while True:
            left = self._until - time.monotonic()
            await asyncio.wait((task,), timeout=max(0.0, min(self._seconds / 5, left)))
            left = self._until - time.monotonic()
            if task.done() or left <= 0:
                return
            try:
                async with asyncio.timeout(min(self._seconds / 3, left)):
                    if not await self._acquire() and not self.trouble:
                        return  # another one has it
            except TimeoutError:
                self.trouble = "The Kubernetes API server did not answer in time to renew the Lease."

    async def _acquire(self) -> bool:
        """Takes or renews the Lease. False: another one has it, or it can't be reached (`trouble`)."""
        started = time.monotonic()
        try:
            try:
                taken = await self._take()
            except Conflict:
                taken = await self._take()  # somebody changed it, perhaps only a label of it: look
        except Conflict:
            taken = False  # another one was faster
        except OperatorError as error:
            if self.trouble != str(error):
                _log.warning("lease_unreachable", lease=self._name, error=str(error))
            self.trouble = str(error)
            return False
        self.trouble = ""
        if taken:
            self._until = started + self._seconds * 2 / 3
        return taken

    async def _take(self) -> bool:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec: dict[str, Any] = {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._seconds)),
            "renewTime": now,
        }
        found, self._mine = self._mine, None
        if found is None:
            try:
                found = await self._api.get(f"{self._collection}/{self._name}")
            except Gone:
                body = {
                    "apiVersion": "coordination.k8s.io/v1",
                    "kind": "Lease",
                    "metadata": {"name": self._name},
                    "spec": {**spec, "acquireTime": now, "leaseTransitions": 0},
                }
                self._mine = await self._api.create(self._collection, body)
                return True
        before = found.get("spec") or {}
        holder = before.get("holderIdentity")
        if holder != self._identity:
            if holder and not self._abandoned(found):
                return False
            spec.update(acquireTime=now, leaseTransitions=(before.get("leaseTransitions") or 0) + 1)
        found["spec"] = {**before, **spec}
        self._mine = await self._api.replace(f"{self._collection}/{self._name}", found)
        return True

    def _abandoned(self, found: Object) -> bool:
        """Whether we have seen it unchanged for as long as its holder promised to renew it."""
        version = found["metadata"]["resourceVersion"]
        if version != self._seen[0]:
            self._seen = (version, time.monotonic())
        duration = (found.get("spec") or {}).get("leaseDurationSeconds") or self._seconds
        return time.monotonic() - self._seen[1] >= float(duration)

    async def _release(self) -> None:
        """Lets the next one take over at once."""
        if self._mine is None:
            return
        self._mine["spec"]["holderIdentity"] = ""
        try:
            await self._api.replace(f"{self._collection}/{self._name}", self._mine)
        except OperatorError as error:
            _log.warning("lease_not_released", lease=self._name, error=str(error))
