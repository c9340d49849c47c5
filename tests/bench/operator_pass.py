"""What a pass's decisions cost the operator's process with many objects: no API server, no Ray, no database.

    python tests/bench/operator_pass.py [--keys 10000] [--models 1000] [--plans 100] [--profile] [--without-memo]

In CPU time, so that a busy machine changes little. All objects are settled; what is measured is a pass in which nothing
has changed, one after one key's state has changed, one after a plan's limit, and one after a model's price.
"""

import argparse
import cProfile
import gc
import pstats
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.ports import MemoryObjects
from support.world import BASE_URL, NOW, llama, on

from tollway_operator.builders.desired import Desired, build
from tollway_operator.keys import KEY_FIELD, MANAGED_BY, OWNER_LABEL, URL_FIELD, describe, generate
from tollway_operator.main import _COLLECTED_AFTER
from tollway_operator.memo import Memo
from tollway_operator.observed import Observed, Parser
from tollway_operator.plan import decide
from tollway_operator.ports import AppStatus, Raw, RayStatus, SecretView, Snapshot
from tollway_operator.settings import Settings
from tollway_operator.status import Judgement, Outcome, judge
from tollway_serving.contract.catalogue import Catalogue

SETTINGS = Settings(base_url=BASE_URL)


class Passes:
    def __init__(self, keys: int, models: int, plans: int, *, memo: bool) -> None:
        self.objects = MemoryObjects()
        for number in range(plans):
            self.objects.put("Plan", f"plan-{number}", {"credits": {"monthly": "5"}})
        for number in range(models):
            self.objects.put("ModelDeployment", f"model-{number}", llama())
        for number in range(keys):
            self.objects.put("ApiKey", f"key-{number}", on(f"plan-{number % plans}"))
        self.secrets = {
            (raw.namespace, raw.name): secret(raw) for raw in self.objects.objects.values() if raw.kind == "ApiKey"
        }
        self.remembers = memo
        self.memo, self.parser = Memo(), Parser()
        self.published = Catalogue()
        self.ray = RayStatus({})
        self.kept: Any = None
        for _ in range(4):  # published, deployed, running, remembered
            desired, judged = self.run()
            self.kept = desired.rollout.memory
            self.ray = RayStatus(
                {
                    name: AppStatus(name, "RUNNING", "", config, 1, 1, {"RUNNING": 1})
                    for name, config in desired.rollout.configs.items()
                }
            )
            for judgement in judged:
                raw = judgement.raw
                if judgement.changed:
                    self.objects.objects[raw.key] = replace(raw, status=judgement.status)

    def run(self) -> tuple[Desired, tuple[Judgement, ...]]:
        if not self.remembers:
            self.memo, self.parser = Memo(), Parser()
        found = self.parser.parse(Snapshot(tuple(self.objects.objects.values()), self.secrets, {}))
        observed = Observed(
            now=NOW,
            models=found["ModelDeployment"],
            plans=found["Plan"],
            keys=found["ApiKey"],
            secrets=self.secrets,
            ray=self.ray,
            published=self.published,
        )
        if self.kept is not None:
            observed = replace(observed, memory=self.kept)
        desired = build(observed, SETTINGS, self.memo)
        decide(observed, desired, SETTINGS, repair=False, provider_keys_known=True, memo=self.memo)
        self.published = desired.catalogue or self.published
        return desired, judge(observed, desired, Outcome(), self.memo)

    def settled(self) -> bool:
        return not any(judgement.changed for judgement in self.run()[1])


def secret(raw: Raw) -> SecretView:
    values = {KEY_FIELD: describe(generate()), URL_FIELD: describe(BASE_URL)}
    labels = {OWNER_LABEL: raw.name, MANAGED_BY: "tollway"}
    return SecretView(raw.namespace, raw.name, f"secret-{raw.uid}", labels, raw.uid, NOW - 100, values)


def measure(what: str, run: Callable[[], object], times: int, change: Callable[[int], object] | None = None) -> None:
    spent = []
    for number in range(times):
        if change is not None:
            change(number)
        began = time.process_time()
        run()
        spent.append(time.process_time() - began)
    spent.sort()
    print(
        f"{what}: {1000 * spent[len(spent) // 2]:.1f} ms of CPU (from {1000 * spent[0]:.1f} to {1000 * spent[-1]:.1f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=10_000)
    parser.add_argument("--models", type=int, default=1_000)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--without-memo", action="store_true")
    options = parser.parse_args()
    gc.set_threshold(*_COLLECTED_AFTER)
    passes = Passes(options.keys, options.models, options.plans, memo=not options.without_memo)
    assert passes.settled()
    print(f"{options.keys} keys, {options.models} models, {options.plans} plans")
    put = passes.objects.put
    states = ("Suspended", "Active")
    measure("nothing changed", passes.run, options.times)
    measure(
        "a key's state",
        passes.run,
        options.times,
        lambda number: put("ApiKey", "key-5", on("plan-5", state=states[number % 2])),
    )
    measure(
        "a plan's limit",
        passes.run,
        options.times,
        lambda number: put("Plan", "plan-5", {"limits": {"requestsPerMinute": number + 1}}),
    )
    measure(
        "a model's price",
        passes.run,
        options.times,
        lambda number: put("ModelDeployment", "model-5", llama(pricing={"perMillionInputTokens": str(number + 1)})),
    )
    if options.profile:
        profile = cProfile.Profile()
        for number in range(5):
            put("ApiKey", "key-5", on("plan-5", state=states[number % 2]))
            profile.runcall(passes.run)
        pstats.Stats(profile).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
