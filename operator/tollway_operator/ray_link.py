"""Ray behind the reconcile's back: a slow or silent Ray must never hold up a revocation.

`RayLink` asks for the status and sends application sets in tasks of its own; a pass reads what was last seen and goes
on. Each news calls `wake`, and the next pass looks at it.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from tollway_operator.errors import OperatorError, Refused
from tollway_operator.ports import AppStatus, Ray, RayStatus

log = structlog.get_logger(__name__)

_TRUSTED = 15.0  # seconds for which a status that can't be renewed still counts
_LOG_LINES = 5
_LOG_WAIT = 2.0  # seconds that a status may wait for the last words of what failed
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0

Config = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Put:
    """A whole application set, and for single tries: which of them are new, and what Ray has in their place."""

    configs: tuple[Config, ...]
    changed: tuple[str, ...]
    there: Mapping[str, AppStatus]


class RayLink:
    """`interval` answers how many seconds may pass before the status is asked for again."""

    def __init__(self, ray: Ray, interval: Callable[[], float], wake: Callable[[], None]) -> None:
        self._ray = ray
        self._interval = interval
        self._wake = wake
        self._status: RayStatus | None = None
        self._error = ""
        self._seen_at = 0.0
        self._look = asyncio.Event()
        self._first = asyncio.Event()
        self._put_task: asyncio.Task[None] | None = None
        self._pause = _FIRST_PAUSE
        self._not_before = 0.0
        self._asked = 0
        self._needed = 0
        self.put_error = ""
        self.last_words: dict[str, str] = {}
        """The last log lines of applications that failed, as long as they are failed."""
        self.refusals: dict[str, str] = {}
        """Why Ray would not take an application's config, by application; cleared when it is taken."""

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                self._look.clear()
                await self._ask()
                self._first.set()
                try:
                    async with asyncio.timeout(self._interval()):
                        await self._look.wait()
                except TimeoutError:
                    pass
        finally:
            if self._put_task is not None:
                self._put_task.cancel()
                await asyncio.gather(self._put_task, return_exceptions=True)

    async def first_look(self, seconds: float) -> None:
        """Waits for the first answer or error."""
        try:
            async with asyncio.timeout(seconds):
                await self._first.wait()
        except TimeoutError:
            self._error = self._error or "Ray has not answered yet"

    @property
    def status(self) -> RayStatus | None:
        """As last seen; None while Ray doesn't answer, or while a set is on its way and its effect not yet seen."""
        if self._status is not None and (not self._error or self._age() < _TRUSTED):
            return self._status
        return None

    @property
    def error(self) -> str:
        return self._error if self.status is None else ""

    @property
    def busy(self) -> bool:
        """A set is on its way, or what it did has not been seen yet."""
        return self._put_task is not None or self._asked < self._needed

    def look(self) -> None:
        """Asks for the status now."""
        self._look.set()

    def put(self, put: Put) -> bool:
        """Sends a set behind the pass's back. False if one is on its way or the last failure is too recent."""
        if self.busy or asyncio.get_running_loop().time() < self._not_before:
            return False
        self._put_task = asyncio.create_task(self._send(put))
        return True

    def _age(self) -> float:
        return asyncio.get_running_loop().time() - self._seen_at

    async def _ask(self) -> None:
        asked = self._needed
        was = (self._status, bool(self._error))
        try:
            status = await self._ray.status()
            await self._listen(status)
        except OperatorError as error:
            if not self._error:
                log.warning("ray_unreachable", error=str(error))
            self._error = str(error)
            if was == (self._status, True) and self._age() < _TRUSTED + 2 * self._interval():
                self._wake()  # the moment in which the last status stops counting lies about here
        else:
            if self._error:
                log.info("ray_reachable")
            self._error = ""
            self._status = status
            self._seen_at = asyncio.get_running_loop().time()
            self._asked = max(self._asked, asked)
        if was != (self._status, bool(self._error)):
            self._wake()

    async def _listen(self, status: RayStatus) -> None:
        """Asks for the last words of each application that has failed, until they are known; a node whose agent is away
        or slow doesn't hold up the status for long."""
        failed = {name for name, app in status.apps.items() if app.status == "DEPLOY_FAILED"}
        self.last_words = {name: words for name, words in self.last_words.items() if name in failed}
        until = asyncio.get_running_loop().time() + _LOG_WAIT
        for name in failed - self.last_words.keys():
            try:
                async with asyncio.timeout_at(until):
                    self.last_words[name] = await self._ray.logs(name, _LOG_LINES)
            except (OperatorError, TimeoutError) as error:  # an agent may come later than its replicas: asked again
                log.debug("no_logs", application=name, error=str(error) or "no answer in time")

    async def _send(self, put: Put) -> None:
        try:
            if await self._has_come_up(put):
                return
            await self._try(put)
        except OperatorError as error:
            self.put_error = str(error)
            self._not_before = asyncio.get_running_loop().time() + self._pause
            self._pause = min(_LONGEST_PAUSE, 2 * self._pause)
            log.warning("applications_not_sent", error=str(error))
        else:
            self.put_error = ""
            self._pause = _FIRST_PAUSE
        finally:
            self._put_task = None
            self._needed += 1
            self.look()
            self._wake()

    async def _has_come_up(self, put: Put) -> bool:
        """Whether something that the set replaces runs by now: then a pass takes note of it and decides anew. Versions
        may follow each other faster than the status is asked for, and one that nobody saw running would not be gone
        back to."""
        waited_for = [name for name in put.changed if name in put.there and put.there[name].status != "RUNNING"]
        if not waited_for:
            return False
        now = (await self._ray.status()).apps
        return any(name in now and now[name].status == "RUNNING" for name in waited_for)

    async def _try(self, put: Put) -> None:
        """The whole set; if Ray refuses it, each new config by itself beside what Ray has, so that one that is invalid
        holds up none of the others."""
        try:
            await self._ray.put(put.configs)
        except Refused as refusal:
            if len(put.changed) == 1:
                self.refusals[put.changed[0]] = str(refusal)
                raise
        else:
            for name in put.changed:
                self.refusals.pop(name, None)
            return
        there = {name: app.config for name, app in put.there.items() if app.config is not None}
        accepted: dict[str, Config] = {
            str(config["name"]): there.get(str(config["name"]), config)
            for config in put.configs
            if str(config["name"]) in there or str(config["name"]) not in put.changed
        }
        refused = []
        for config in put.configs:
            name = str(config["name"])
            if name not in put.changed:
                continue
            try:
                await self._ray.put(tuple({**accepted, name: config}.values()))
            except Refused as refusal:
                self.refusals[name] = str(refusal)
                refused.append(name)
            else:
                accepted[name] = config
                self.refusals.pop(name, None)
        if refused:
            raise Refused(f"Ray refuses {', '.join(refused)}: {self.refusals[refused[0]]}")
