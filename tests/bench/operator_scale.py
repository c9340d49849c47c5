"""How the operator does with many objects, on a real API server and SQLite: run by hand, prints what
docs/benchmarks-operator.md reports.

    python tests/bench/operator_scale.py [--keys 1000] [--models 100] [--plans 20] [--idle 20]

CPU is the process's own (user + system); the API server, etcd and whatever else runs share the machine's cores, so
compare CPU and calls, not seconds. Calls are counted in the API server's audit log. Ray is a server of the tests that
speaks Serve's REST API and calls each application running after 0.2 s.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

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
    """Measures one phase of a process's life, by `count` of `what`; audit lines of earlier phases don't count."""

    def __init__(self, plane: ControlPlane, operator: OperatorProcess, count: int, what: str) -> None:
        self.plane, self.operator, self.count, self.what = plane, operator, count, what
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
        print(f"\n{name}: {seconds:.1f} s, {self.count / seconds:.0f} {self.what}s/s", end="")
        print(f", CPU {cpu:.2f} s = {1000 * cpu / self.count:.1f} ms a {self.what}", end="")
        print(f" = {100 * cpu / seconds:.1f} % of a core", end="")
        print(f", RSS {now:.0f} MB (peak {peak:.0f}), {total} calls = {total / self.count:.2f} a {self.what}")
        print("   ", ", ".join(f"{what} {number}" for what, number in calls.most_common(8)), flush=True)


async def create(here: World, kind: str, specs: Mapping[str, dict[str, Any]]) -> None:
    def one(name: str, spec: dict[str, Any]) -> None:
        body = {"apiVersion": "tollway.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}
        here.plane.request("POST", here.path(kind), body)

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(8) as pool:
        await asyncio.gather(*(loop.run_in_executor(pool, one, name, spec) for name, spec in specs.items()))


def key_specs(prefix: str, count: int, plans: int) -> dict[str, dict[str, Any]]:
    return {f"{prefix}-{number}": {"planRef": {"name": f"plan-{number % plans}"}} for number in range(count)}


async def until_all_ready(here: World, counts: Mapping[str, int]) -> None:
    for kind, count in counts.items():

        async def ready(kind: str = kind, count: int = count) -> bool:
            items = (await here.get(here.path(kind)) or {})["items"]
            states = [
                {condition["type"]: condition["status"] for condition in item.get("status", {}).get("conditions", ())}
                for item in items
            ]
            if len(items) == count and all(state.get("Ready") == "True" for state in states):
                return True
            await asyncio.sleep(0.5)  # a list of all is work for the server, too
            return False

        await here.until(ready, f"{count} of {kind} ready", 900)


async def bench(plane: ControlPlane, keys: int, models: int, plans: int, idle: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with world(plane, Path(folder)) as here:
            operator = here.operator(TOLLWAY_IDENTITY="bench")
            await operator.until_leading()
            now, _ = memory_mb(operator.process.pid)
            print(f"no objects: RSS {now:.0f} MB, CPU since the start {cpu_seconds(operator.process.pid):.2f} s")

            phase = Phase(plane, operator, keys + models + plans, "object")
            source = {"engine": {"name": "llamacpp"}, "source": {"uri": "package://weights/small.gguf"}}
            await create(here, "Plan", {f"plan-{n}": {"credits": {"monthly": "5"}} for n in range(plans)})
            await create(here, "ModelDeployment", {f"model-{n}": source for n in range(models)})
            await create(here, "ApiKey", key_specs("first", keys, plans))
            created = time.monotonic() - phase.began
            await until_all_ready(here, {"ApiKey": keys, "Plan": plans, "ModelDeployment": models})
            await phase.report(
                f"{models} models, {plans} plans, {keys} keys created in {created:.1f} s while it runs, all ready"
            )
            await changes(plane, here, operator)

            phase = Phase(plane, operator, keys, "key")
            await asyncio.sleep(idle)
            await phase.report(f"idle for {idle:.0f} s")

            operator.kill()
            operator = here.operator(TOLLWAY_IDENTITY="bench")
            phase = Phase(plane, operator, keys, "key")
            await operator.until_leading()
            await here.key("after-restart", planRef={"name": "plan-0"})
            await here.until_usable("after-restart")
            await phase.report("killed and restarted (from exec to a new key usable)")


async def changes(plane: ControlPlane, here: World, operator: OperatorProcess, count: int = 10) -> None:
    """One at a time: a key made, a model's price changed, a plan's limit changed, a key deleted."""

    async def timed(name: str, change: Callable[[int], Awaitable[None]]) -> None:
        phase = Phase(plane, operator, count, "change")
        latencies = []
        for number in range(count):
            began = time.monotonic()
            await change(number)
            latencies.append(time.monotonic() - began)
        await phase.report(name)
        print(f"    seconds each: {', '.join(f'{latency:.2f}' for latency in sorted(latencies))}")

    async def made(number: int) -> None:
        await here.key(f"single-{number}", planRef={"name": "plan-0"})
        await here.until_usable(f"single-{number}")

    async def priced(number: int) -> None:
        price = str(number + 1)
        await here.patch(
            here.path("ModelDeployment", "model-0"), {"spec": {"pricing": {"perMillionInputTokens": price}}}
        )

        async def known() -> bool:
            model = next(model for model in (await here.catalogue()).models if model.model_id == "model-0")
            return model.prices.get("input_tokens") == (number + 1) * 1_000_000

        await here.until(known, "price published")

    async def limited(number: int) -> None:
        await here.patch(here.path("Plan", "plan-0"), {"spec": {"limits": {"requestsPerMinute": number + 1}}})

        async def known() -> bool:
            plan = next(plan for plan in (await here.catalogue()).plans if plan.name.endswith("/plan-0"))
            return plan.limits.requests_per_minute == number + 1

        await here.until(known, "limit published")

    async def deleted(number: int) -> None:
        await here.delete(here.path("ApiKey", f"single-{number}"))

        async def gone() -> bool:
            return not await here.published(f"single-{number}")

        await here.until(gone, "withdrawn")

    await timed("one more key, usable", made)
    await timed("one model's price, published", priced)
    await timed("one plan's limit, published", limited)
    await timed("one key deleted, withdrawn", deleted)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--models", type=int, default=100)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--idle", type=float, default=20)
    options = parser.parse_args()
    with start(sorted((ROOT / "crds").glob("*.yaml"))) as plane:
        asyncio.run(bench(plane, options.keys, options.models, options.plans, options.idle))


if __name__ == "__main__":
    main()
