"""Gateways under load while things are killed, stopped, cut off and filled up at random moments; then the books.

Run by tests/bench/faults.py for minutes and by tests/ledger/test_fault_suite.py for seconds. The gateways are processes
as in production but for Ray; their model is the tests' own server.
"""

import asyncio
import contextlib
import os
import random
import signal
import socket
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import sqlalchemy as sa
from support.backend import Backend, Behaviour
from support.fault_books import Findings, Looks, compare
from support.fault_load import Load, catalogue
from support.fault_stores import Fault, FaultStore, Window, open_store

from tollway_serving.ledger import schema
from tollway_serving.ledger.database import Database
from tollway_serving.ledger.grant import grant
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.publish import DatabasePublisher, open_publisher

GATEWAYS = 2
RECOVERY_S = 90.0  # a gateway that starts on a very busy machine takes most of it
GRACE_S = 20.0
_TOPUP_MICRO = 3_000
_BESIDE = "kill -9 of a gateway, beside a fault of the database"
_UNKNOWN = "before any fault"


class GatewayProcess:
    """The gateway on a port of its own, started again after it was killed."""

    def __init__(self, database: str, folder: Path, name: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        self._environment = {
            **os.environ,
            "TOLLWAY_DATABASE_URL": database,
            "TOLLWAY_ADDRESS_REQUESTS": "1000000000",
            "TOLLWAY_ACCESS_LOG": "false",
        }
        self._log = folder / f"{name}.log"
        self.dead: list[str] = []  # how those that were killed are called in the ledger

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Returns when it listens, as a gateway does once it has tried its ledger."""
        command = ["-m", "uvicorn", "--factory", "tollway_serving.gateway.app:make_app", "--port", str(self.port)]
        command += ["--no-access-log", "--log-level", "warning", "--timeout-graceful-shutdown", "10"]
        with self._log.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable, *command, env=self._environment, stdout=log, stderr=log
            )
        while self.process.returncode is None:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            except OSError:
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return
        raise RuntimeError(self.said())

    async def kill(self) -> None:
        self.process.kill()
        self.dead.append(f"{socket.gethostname()[:40]}-{self.process.pid}-")
        await self.process.wait()

    async def end(self) -> int:
        """As an orchestrator does: what is in flight is finished."""
        self.process.terminate()
        return await self.process.wait()

    def said(self) -> str:
        return self._log.read_text(errors="replace")


@dataclass
class Outcome:
    """All figures of a run, by kind of fault where it matters. Times are seconds."""

    store: str
    untried: dict[str, str]
    windows: dict[str, list[Window]] = field(default_factory=lambda: defaultdict(list))
    recovery: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    told: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))  # how long it took to be refused
    looks: Looks = field(default_factory=Looks)
    findings: Findings = field(default_factory=Findings)
    verified: str = ""  # what `tollway usage verify` said
    problems: list[str] = field(default_factory=list)
    open_holds: int = 0
    logs: str = ""

    @property
    def differences(self) -> list[str]:
        return [*self.problems, *self.looks.problems, *self.findings.problems]


class Suite:
    def __init__(self, store: FaultStore, folder: Path, seed: int) -> None:
        self._store = store
        self._chance = random.Random(seed)
        self._backend = Backend(Behaviour(words=100_000, pause=0.006))
        self._gateways = [GatewayProcess(store.url, folder, f"{store.name}-{n}") for n in range(GATEWAYS)]
        self._load = Load([each.url for each in self._gateways], seed)
        self._stopped: dict[int, list[Window]] = defaultdict(list)
        self._grants = count()
        self.outcome = Outcome(store.name, store.untried)

    async def run(self, *, seconds: float, clients: int) -> Outcome:
        """Each kind of fault once, then random ones for the rest of `seconds`. 0 is for a test: a kill, a stop and two
        of the database's faults; what dead gateways held is then closed as if their grace had passed."""
        await self._backend.start()
        publisher = open_publisher(self._store.url)
        await publisher.start()
        await publisher.publish(catalogue(self._backend.url))
        await asyncio.gather(*(each.start() for each in self._gateways))
        work = asyncio.create_task(self._load.run(clients))
        try:
            await self._all_healthy(time.monotonic())
            beside = [
                asyncio.create_task(self.outcome.looks.keep_looking(lambda: self._store.own_url)),
                asyncio.create_task(self._top_up()),
                asyncio.create_task(self._operator(publisher)),
            ]
            await self._faults(seconds)
            self._load.ending = True
            await work
            for each in beside:
                each.cancel()
            await asyncio.wait(beside)
            await self._settled(bury=not seconds)
            await asyncio.gather(*(each.end() for each in self._gateways))
        finally:
            work.cancel()
            for each in self._gateways:
                if each.process.returncode is None:
                    await each.kill()
            self.outcome.logs = "\n".join(each.said() for each in self._gateways)
            await publisher.close()
            await self._backend.close()
        await self._judge()
        return self.outcome

    async def _faults(self, seconds: float) -> None:
        chance, until = self._chance, time.monotonic() + seconds
        own: dict[str, Fault] = {"kill -9 of a gateway": self._kill_one, "SIGSTOP of a gateway": self._stop_one}
        if seconds:
            own |= {"kill -9 of all gateways": self._kill_all, "SIGSTOP beyond its grace": self._stop_long}
        of_store = sorted(self._store.faults)
        kinds = own | self._store.faults
        waiting = [*own, *(of_store if seconds else chance.sample(of_store, 2))]
        chance.shuffle(waiting)
        while waiting or time.monotonic() < until:
            kind = waiting.pop() if waiting else chance.choice(sorted(kinds))
            await asyncio.sleep(chance.random() * 2)
            beside = seconds and kind in self._store.faults and chance.random() < 0.25
            also = self._later_kill() if beside else None
            window = await kinds[kind](self._chance)
            self.outcome.windows[kind].append(window)
            healed = window.healed if also is None else max(window.healed, (await also).healed)
            try:
                took = await self._all_healthy(healed)
            except TimeoutError:
                self.outcome.problems.append(f"not all gateways answer {RECOVERY_S:.0f} s after {kind}")
                return
            self.outcome.recovery[kind if also is None else _BESIDE].append(took)

    def _later_kill(self) -> "asyncio.Task[Window]":
        """Beside another fault: settlements may be waiting in a gateway that dies."""

        async def kill() -> Window:
            await asyncio.sleep(self._chance.random() * 2)
            window = await self._kill_one(self._chance)
            self.outcome.windows[_BESIDE].append(window)
            return window

        return asyncio.create_task(kill())

    async def _kill_one(self, chance: random.Random) -> Window:
        return await self._kill([chance.choice(self._gateways)])

    async def _kill_all(self, _: random.Random) -> Window:
        return await self._kill(self._gateways)

    @staticmethod
    async def _kill(gateways: list[GatewayProcess]) -> Window:
        begun = time.monotonic()
        await asyncio.gather(*(each.kill() for each in gateways))
        await asyncio.gather(*(each.start() for each in gateways))
        return Window(begun, time.monotonic())

    async def _stop_one(self, chance: random.Random) -> Window:
        return await self._stop(chance, chance.choice((0.5, 2.5, 4.0)) + chance.random())

    async def _stop_long(self, chance: random.Random) -> Window:
        """Its calls are closed by the others, and then it goes on with them."""
        return await self._stop(chance, GRACE_S + 5 + 3 * chance.random())

    async def _stop(self, chance: random.Random, seconds: float) -> Window:
        number = chance.randrange(GATEWAYS)
        begun = time.monotonic()
        self._gateways[number].process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self._gateways[number].process.send_signal(signal.SIGCONT)
        self._stopped[number].append(Window(begun, time.monotonic()))
        return self._stopped[number][-1]

    async def _all_healthy(self, since: float) -> float:
        """Until each gateway has answered something that was asked after `since`; how long that took."""
        async with asyncio.timeout(RECOVERY_S):
            while min(self._load.healthy_at, default=0.0) <= since:  # noqa: ASYNC110 - the probes ask all the time
                await asyncio.sleep(0.01)
        return time.monotonic() - since

    @staticmethod
    async def _operator(publisher: DatabasePublisher) -> None:
        """The part of it that matters here: where no gateway is left, it closes what they held."""
        while True:
            await asyncio.sleep(5)
            with contextlib.suppress(LedgerUnavailable):
                await publisher.reap()

    async def _top_up(self) -> None:
        """Each grant is made twice, as by somebody who was not sure; it counts once."""
        while True:
            await asyncio.sleep(2)
            name = f"grant-{next(self._grants)}"
            for _ in range(2):
                try:
                    await grant(self._store.own_url, "ml/tight", _TOPUP_MICRO, name)
                except LedgerUnavailable:
                    await asyncio.sleep(0.5)

    async def _settled(self, *, bury: bool) -> None:
        """Until no hold is open: what dead gateways held is closed by the others."""
        database = Database(self._store.own_url, limit_s=10)
        try:
            async with asyncio.timeout(90):
                while True:
                    self.outcome.open_holds = await database.read(
                        lambda connection: connection.scalar(sa.select(sa.func.count()).select_from(schema.holds)) or 0
                    )
                    if not self.outcome.open_holds:
                        return
                    if bury:
                        await database.write(self._bury)
                    await asyncio.sleep(0.5)
        except TimeoutError:
            self.outcome.problems.append(f"{self.outcome.open_holds} holds stay open")
        finally:
            await database.close()

    def _bury(self, connection: sa.Connection) -> None:
        owner = schema.replicas.c.owner
        dead = sa.or_(sa.false(), *(owner.startswith(name) for each in self._gateways for name in each.dead))
        connection.execute(sa.update(schema.replicas).where(dead).values(seen_ms=0))

    async def _judge(self) -> None:
        outcome = self.outcome
        outcome.findings = await compare(self._store.own_url, self._load.sent)
        verify = [sys.executable, "-m", "tollway_cli", "usage", "verify", "--database-url", self._store.own_url]
        process = await asyncio.create_subprocess_exec(*verify, stdout=-1, stderr=-2)
        said, _ = await process.communicate()
        outcome.verified = said.decode().strip()
        if process.returncode:
            outcome.problems.append(f"usage verify: {outcome.verified}")
        if outcome.looks.late_holds:
            outcome.problems.append(f"past their deadline: {outcome.looks.late_holds}")
        windows = [(window.begun, kind) for kind, windows in outcome.windows.items() for window in windows]
        for sent in self._load.sent:
            stopped = any(
                window.begun < sent.ended_at and window.healed > sent.sent_at for window in self._stopped[sent.gateway]
            )
            if sent.unavailable and sent.status == 503 and not stopped:
                begun, kind = max((each for each in windows if each[0] < sent.ended_at), default=(0.0, _UNKNOWN))
                outcome.told[kind].append(sent.ended_at - max(begun, sent.sent_at))
        if "Traceback" in outcome.logs or "request_failed" in outcome.logs:
            outcome.problems.append("a gateway has logged an exception")


@asynccontextmanager
async def suite(store: str, folder: Path, seed: int) -> AsyncIterator[Suite]:
    async with open_store(store) as opened:
        yield Suite(opened, folder, seed)
