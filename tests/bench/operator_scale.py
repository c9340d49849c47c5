"""How the operator does with many ApiKeys, on a real API server and SQLite: run by hand, prints one table.

    python tests/bench/operator_scale.py [--keys 500] [--idle 20]

CPU is the process's own (user + system); the API server, etcd and whatever else runs share the machine's cores, so
compare CPU, not seconds. Calls are counted in the API server's audit log.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.control_plane import ROOT, ControlPlane, start
from support.operator_process import OperatorProcess
from support.operator_world import World, world

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mb(pid: int) -> tuple[float, float]:
    """Now, and the highest so far."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return tuple(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


class Phase:
    """Measures one phase of a process's life; `seen` are audit lines that earlier phases counted."""

    def __init__(self, plane: ControlPlane, operator: OperatorProcess, count: int) -> None:
        self.plane, self.operator, self.count = plane, operator, count
        self.calls_before = len(plane.audit())
        self.cpu_before = cpu_seconds(operator.process.pid)
        self.began = time.monotonic()

    async def report(self, name: str) -> None:
        seconds = time.monotonic() - self.began
        pid = self.operator.process.pid
        cpu = cpu_seconds(pid) - self.cpu_before
        await asyncio.sleep(1)  # the audit log is written in batches
        calls = Counter(
            f"{entry['verb']} {entry.get('objectRef', {}).get('resource', 'discovery')}"
            + (f"/{entry['objectRef']['subresource']}" if entry.get("objectRef", {}).get("subresource") else "")
            for entry in self.plane.audit()[self.calls_before :]
            if entry["verb"] != "watch"
        )
        now, peak = memory_mb(pid)
        total = sum(calls.values())
        print(f"\n{name}: {seconds:.1f} s, {self.count / seconds:.0f} keys/s", end="")
        print(
            f", CPU {cpu:.2f} s = {1000 * cpu / self.count:.2f} ms a key, {100 * cpu / seconds:.1f} % of a core", end=""
        )
        print(f", RSS {now:.0f} MB (peak {peak:.0f}), {total} calls = {total / self.count:.2f} a key")
        print("   ", ", ".join(f"{what} {number}" for what, number in calls.most_common(8)), flush=True)


async def create_keys(here: World, count: int, prefix: str) -> None:
    body = {"apiVersion": "tollway.dev/v1alpha1", "kind": "ApiKey", "spec": {"planRef": {"name": "pro"}}}

    def create(number: int) -> None:
        here.plane.request("POST", here.path("ApiKey"), {**body, "metadata": {"name": f"{prefix}-{number}"}})

    with ThreadPoolExecutor(8) as pool:
        await asyncio.gather(
            *(asyncio.get_running_loop().run_in_executor(pool, create, number) for number in range(count))
        )


async def until_all_ready(here: World, count: int) -> None:
    async def ready() -> bool:
        items = (await here.get(here.path("ApiKey")) or {})["items"]
        states = [
            {condition["type"]: condition["reason"] for condition in item.get("status", {}).get("conditions", ())}
            for item in items
        ]
        return len(items) == count and all(state.get("Ready") == "Active" for state in states)

    await here.until(ready, f"{count} keys active", 600)


async def bench(plane: ControlPlane, keys: int, idle: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with world(plane, Path(folder)) as here:
            await here.plan(credits={"monthly": "5"})
            await here.model("small")
            operator = here.operator(TOLLWAY_IDENTITY="bench")
            await operator.until_leading()
            now, _ = memory_mb(operator.process.pid)
            print(f"no keys: RSS {now:.0f} MB, CPU since the start {cpu_seconds(operator.process.pid):.2f} s")

            phase = Phase(plane, operator, keys)
            await create_keys(here, keys, "first")
            created = time.monotonic() - phase.began
            await until_all_ready(here, keys)
            await phase.report(f"{keys} keys created in {created:.1f} s while it runs")

            latencies = []
            for number in range(10):
                began = time.monotonic()
                await here.key(f"single-{number}")
                await here.until_usable(f"single-{number}")
                latencies.append(time.monotonic() - began)
            print(f"one more key, usable after (s): {', '.join(f'{latency:.2f}' for latency in sorted(latencies))}")
            latencies = []
            for number in range(10):
                began = time.monotonic()
                await here.delete(here.path("ApiKey", f"single-{number}"))
                await here.until(lambda n=number: gone(here, f"single-{n}"), "withdrawn")  # type: ignore[misc]
                latencies.append(time.monotonic() - began)
            print(f"a key deleted, withdrawn after (s): {', '.join(f'{latency:.2f}' for latency in sorted(latencies))}")

            phase = Phase(plane, operator, keys)
            await asyncio.sleep(idle)
            await phase.report(f"idle for {idle:.0f} s")

            operator.kill()
            operator = here.operator(TOLLWAY_IDENTITY="bench")
            phase = Phase(plane, operator, keys)
            await operator.until_leading()
            await here.key("after-restart")
            await here.until_usable("after-restart")
            await phase.report("restarted (from exec to a new key usable)")

            operator.kill()
            await create_keys(here, keys, "second")
            operator = here.operator(TOLLWAY_IDENTITY="bench")
            phase = Phase(plane, operator, keys)
            await until_all_ready(here, 2 * keys + 1)
            await phase.report(f"{keys} more that waited for its start")


async def gone(here: World, name: str) -> bool:
    return not await here.published(name)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=500)
    parser.add_argument("--idle", type=float, default=20)
    options = parser.parse_args()
    with start(sorted((ROOT / "crds").glob("*.yaml"))) as plane:
        asyncio.run(bench(plane, options.keys, options.idle))


if __name__ == "__main__":
    main()
