"""How the operator does with many objects, on a real API server and SQLite: run by hand, prints what
docs/benchmarks-operator.md reports.

    python tests/bench/operator_scale.py [--keys 1000] [--models 100] [--plans 20] [--idle 20] [--limit 900]

CPU is the process's own (user + system); the API server, etcd, this program and whatever else runs share the machine's
cores, so compare CPU and calls, not seconds. Calls are counted in the API server's audit log. Ray is a server of the
tests that speaks Serve's REST API and calls each application running after 0.2 s. What is ready is learnt from watches,
and what is published from single rows of the ledger, so that the asking costs little of what is measured.
"""

import argparse
import asyncio
import base64
import hashlib
import os
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import aiohttp
import orjson
from support.control_plane import ROOT, ControlPlane, start
from support.operator_process import OperatorProcess
from support.operator_world import MERGE, World, world

TICKS = os.sysconf("SC_CLK_TCK")
CREATORS = 8
OPERATOR = {"TOLLWAY_IDENTITY": "bench", "TOLLWAY_LEASE_SECONDS": "15"}  # as in production; tests have 3
JSON = "application/json"


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mb(pid: int) -> tuple[float, float]:
    """Now, and the highest so far."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


class Phase:
    """Measures one phase of a process's life, by `count` of `what`; audit lines of earlier phases don't count."""

    def __init__(self, plane: ControlPlane, operator: OperatorProcess, count: int, what: str) -> None:
        self.plane, self.operator, self.count, self.what = plane, operator, count, what
        self.audit = plane.folder / "audit.log"
        self.audited = self.audit.stat().st_size if self.audit.exists() else 0
        self.cpu_before = self.cpu()
        self.began = time.monotonic()

    def cpu(self) -> dict[str, float]:
        pids = {"operator": self.operator.process.pid, "bench": os.getpid()}
        pids |= {name: program.pid for name, program in self.plane.programs.items()}
        return {name: cpu_seconds(pid) for name, pid in pids.items()}

    async def report(self, name: str) -> None:
        seconds = time.monotonic() - self.began
        used = {name: now - self.cpu_before[name] for name, now in self.cpu().items()}
        cpu = used.pop("operator")
        await asyncio.sleep(1)  # the audit log is written in batches
        calls = self.calls()
        now, peak = memory_mb(self.operator.process.pid)
        total = sum(calls.values())
        print(f"\n{name}: {seconds:.1f} s, {self.count / seconds:.0f} {self.what}s/s", end="")
        print(f", CPU {cpu:.2f} s = {1000 * cpu / self.count:.1f} ms a {self.what}", end="")
        print(f" = {100 * cpu / seconds:.1f} % of a core", end="")
        print(f", RSS {now:.0f} MB (peak {peak:.0f}), {total} calls = {total / self.count:.2f} a {self.what}")
        print("   ", ", ".join(f"{what} {number}" for what, number in calls.most_common(8)))
        others = ", ".join(f"{program} {spent:.1f} s" for program, spent in used.items())
        print(f"    CPU of the others: {others}; load {os.getloadavg()[0]:.1f}", flush=True)

    def calls(self) -> Counter[str]:
        with self.audit.open("rb") as log:
            log.seek(self.audited)
            # The last line may be half-written.
            entries = [orjson.loads(line) for line in log if line.endswith(b"}\n")]
        return Counter(
            f"{entry['verb']} {entry.get('objectRef', {}).get('resource', 'discovery')}"
            + (f"/{entry['objectRef']['subresource']}" if entry.get("objectRef", {}).get("subresource") else "")
            for entry in entries
            if entry["verb"] != "watch"
        )


class Client:
    """The API server as a user of it sees it, over connections that are kept; and the ledger's rows."""

    def __init__(self, here: World, session: aiohttp.ClientSession) -> None:
        self.here, self.session = here, session
        self.ready: dict[str, set[str]] = {"ModelDeployment": set(), "Plan": set(), "ApiKey": set()}
        self._places = asyncio.Semaphore(CREATORS)
        self._news = asyncio.Event()

    async def call(self, method: str, path: str, body: Any = None, content_type: str = JSON) -> dict[str, Any]:
        """{} for what isn't there."""
        data = None if body is None else orjson.dumps(body)
        headers = {"Content-Type": content_type}
        async with self.session.request(method, self.here.plane.url + path, data=data, headers=headers) as answer:
            if answer.status == 404:
                return {}
            assert answer.status < 300, await answer.text()
            return orjson.loads(await answer.read())

    async def create(self, kind: str, specs: Mapping[str, dict[str, Any]]) -> None:
        async def one(name: str, spec: dict[str, Any]) -> None:
            async with self._places:
                body = {"apiVersion": "tollway.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
                await self.call("POST", self.here.path(kind), body)

        await asyncio.gather(*(one(name, spec) for name, spec in specs.items()))

    async def watch(self, kind: str) -> None:
        """Keeps `ready` for a kind, until cancelled."""
        params = {"watch": "true"}
        timeout = aiohttp.ClientTimeout(total=None)
        url = self.here.plane.url + self.here.path(kind)
        async with self.session.get(url, params=params, timeout=timeout, read_bufsize=1 << 20) as answer:
            async for line in answer.content:
                event = orjson.loads(line)
                item = event["object"]
                conditions = item.get("status", {}).get("conditions", ())
                states = {condition["type"]: condition["status"] for condition in conditions}
                name = item["metadata"]["name"]
                if event["type"] != "DELETED" and states.get("Ready") == "True":
                    self.ready[kind].add(name)
                else:
                    self.ready[kind].discard(name)
                self._news.set()

    async def until_ready(self, counts: Mapping[str, int], limit: float) -> None:
        """Or until the limit, which is told."""
        began = said = time.monotonic()
        while any(len(self.ready[kind]) < count for kind, count in counts.items()):
            self._news.clear()
            if time.monotonic() - said > 20:
                said = time.monotonic()
                print(f"    after {said - began:.0f} s: {self.counts()}", flush=True)
            if time.monotonic() - began > limit:
                print(f"    NOT ALL READY within {limit:.0f} s: {self.counts()}", flush=True)
                return
            await asyncio.wait((asyncio.ensure_future(self._news.wait()),), timeout=1)

    def counts(self) -> dict[str, int]:
        return {kind: len(names) for kind, names in self.ready.items()}

    def row(self, kind: str, id_: str) -> dict[str, Any] | None:
        """The published entry."""
        with closing(sqlite3.connect(f"file:{self.here.folder}/ledger.db?mode=ro", uri=True)) as database:
            found = database.execute(
                "select body from tollway_catalogue where kind = ? and id = ? and deleted = 0", (kind, id_)
            ).fetchone()
        return None if found is None else orjson.loads(found[0])

    async def key_hash(self, name: str) -> str | None:
        found = await self.call("GET", self.here.secret_path(name))
        value = (found.get("data") or {}).get("OPENAI_API_KEY")
        return None if value is None else hashlib.sha256(base64.b64decode(value)).hexdigest()

    async def until_usable(self, name: str, seconds: float = 120) -> str:
        async def usable() -> str | None:
            known = await self.key_hash(name)
            return known if known and self.row("key", known) else None

        return str(await self.here.until(usable, f"key {name} usable", seconds))


@asynccontextmanager
async def client(here: World) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {here.plane.token}"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=here.plane.tls()), headers=headers) as session:
        made = Client(here, session)
        watches = [asyncio.create_task(made.watch(kind)) for kind in made.ready]
        try:
            yield made
        finally:
            for watch in watches:
                watch.cancel()
            await asyncio.gather(*watches, return_exceptions=True)


async def bench(plane: ControlPlane, options: argparse.Namespace) -> None:
    keys, models, plans = options.keys, options.models, options.plans
    with tempfile.TemporaryDirectory() as folder:
        async with world(plane, Path(folder)) as here, client(here) as user:
            operator = here.operator(**OPERATOR)
            await operator.until_leading()
            now, _ = memory_mb(operator.process.pid)
            print(f"no objects: RSS {now:.0f} MB, CPU since the start {cpu_seconds(operator.process.pid):.2f} s")

            phase = Phase(plane, operator, keys + models + plans, "object")
            source = {"engine": {"name": "llamacpp"}, "source": {"uri": "package://weights/small.gguf"}}
            await user.create("Plan", {f"plan-{n}": {"credits": {"monthly": "5"}} for n in range(plans)})
            await user.create("ModelDeployment", {f"model-{n}": source for n in range(models)})
            specs = {f"first-{n}": {"planRef": {"name": f"plan-{n % plans}"}} for n in range(keys)}
            await user.create("ApiKey", specs)
            created = time.monotonic() - phase.began
            await user.until_ready({"ApiKey": keys, "Plan": plans, "ModelDeployment": models}, options.limit - created)
            await phase.report(
                f"{models} models, {plans} plans, {keys} keys created in {created:.1f} s while it runs, all ready"
            )
            await asyncio.sleep(5)  # the plans' counts
            await changes(plane, user, operator, options.changes)

            phase = Phase(plane, operator, keys, "key")
            await asyncio.sleep(options.idle)
            await phase.report(f"idle for {options.idle:.0f} s")

            operator.kill()
            operator = here.operator(**OPERATOR)
            phase = Phase(plane, operator, keys, "key")
            await operator.until_leading(300)
            await user.create("ApiKey", {"after-restart": {"planRef": {"name": "plan-0"}}})
            await user.until_usable("after-restart", 300)
            await phase.report("killed and restarted (from exec to a new key usable)")
            if options.log:
                print(operator.text()[-20_000:])


async def changes(plane: ControlPlane, user: Client, operator: OperatorProcess, count: int) -> None:
    """One at a time: a key made, a model's price changed, a plan's limit changed, a key deleted."""
    here = user.here
    hashes: dict[int, str] = {}

    async def timed(name: str, change: Callable[[int], Awaitable[None]]) -> None:
        phase = Phase(plane, operator, count, "change")
        latencies = []
        for number in range(count):
            began = time.monotonic()
            await change(number)
            latencies.append(time.monotonic() - began)
            await asyncio.sleep(1)  # what follows a change (statuses, counts) belongs to it
        await phase.report(name)
        print(f"    seconds each: {', '.join(f'{latency:.2f}' for latency in sorted(latencies))}")

    async def made(number: int) -> None:
        await user.create("ApiKey", {f"single-{number}": {"planRef": {"name": "plan-0"}}})
        hashes[number] = await user.until_usable(f"single-{number}")

    async def priced(number: int) -> None:
        price = {"spec": {"pricing": {"perMillionInputTokens": str(number + 1)}}}
        await user.call("PATCH", here.path("ModelDeployment", "model-0"), price, MERGE)

        async def known() -> bool:
            entry = user.row("model", "model-0")
            return entry is not None and entry.get("prices", {}).get("input_tokens") == (number + 1) * 1_000_000

        await here.until(known, "price published", 120)

    async def limited(number: int) -> None:
        limit = {"spec": {"limits": {"requestsPerMinute": number + 1}}}
        await user.call("PATCH", here.path("Plan", "plan-0"), limit, MERGE)

        async def known() -> bool:
            entry = user.row("plan", f"{here.namespace}/plan-0")
            return entry is not None and entry["limits"].get("requests_per_minute") == number + 1

        await here.until(known, "limit published", 120)

    async def deleted(number: int) -> None:
        await user.call("DELETE", here.path("ApiKey", f"single-{number}"))

        async def gone() -> bool:
            return user.row("key", hashes[number]) is None

        await here.until(gone, "withdrawn", 120)

    await timed("one more key, usable", made)
    await timed("one model's price, published", priced)
    await timed("one plan's limit, published", limited)
    await timed("one key deleted, withdrawn", deleted)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--changes", type=int, default=10)
    parser.add_argument("--idle", type=float, default=20)
    parser.add_argument("--limit", type=float, default=900)
    parser.add_argument("--log", action="store_true", help="print the end of the operator's log")
    options = parser.parse_args()
    with start(sorted((ROOT / "crds").glob("*.yaml"))) as plane:
        asyncio.run(bench(plane, options))


if __name__ == "__main__":
    main()
