"""The memo of the operator's passes: what it keeps, for how long, and that a pass with it decides what one without
decides, whatever has changed in between."""

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from support.built import CLUSTER, EMBEDDED
from support.ports import MemoryObjects
from support.world import NOW, llama, on

from tollway_operator.builders.desired import Desired, build
from tollway_operator.builders.pools import PodDefaults
from tollway_operator.keys import KEY_FIELD, MANAGED_BY, OWNER_LABEL, URL_FIELD, describe
from tollway_operator.memo import Clock, Memo
from tollway_operator.observed import Memory, Observed, Parser
from tollway_operator.plan import Plan, decide
from tollway_operator.platform import PlatformStatus
from tollway_operator.ports import AppStatus, RayStatus, SecretView, Snapshot
from tollway_operator.settings import Settings
from tollway_operator.status import Judgement, Outcome, Reach, judge
from tollway_serving.contract.catalogue import Catalogue
from tollway_serving.ledger.port import AccountUsage


class Asked:
    """A function that remembers what it was asked."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def __call__(self, *row: Any) -> tuple[Any, ...]:
        self.rows.append(row)
        return row

    def taken(self) -> list[tuple[Any, ...]]:
        rows, self.rows = self.rows, []
        return rows


def test_only_rows_that_changed_are_worked_out() -> None:
    memo, asked = Memo(), Asked()
    assert memo.each(asked, "abc", (1, 2, 3), common=("x",)) == ((1, "x"), (2, "x"), (3, "x"))
    assert len(asked.taken()) == 3
    assert memo.each(asked, "cab", (3, 1, 5), common=("x",)) == ((3, "x"), (1, "x"), (5, "x"))
    assert asked.taken() == [(5, "x")], "by key, whatever the order"
    memo.each(asked, "ca", (3, 1), common=("x",))
    memo.each(asked, "cab", (3, 1, 5), common=("x",))
    assert asked.taken() == [(5, "x")], "what was gone is forgotten"
    memo.each(asked, "cab", (3, 1, 5), common=("y",))
    assert len(asked.taken()) == 3, "what all have in common concerns all"


def test_an_equal_result_stays_the_same_object() -> None:
    memo = Memo()
    first = memo.each(sorted, "a", ([2, 1],))[0]
    assert memo.each(sorted, "a", ([1, 2],))[0] is first


def test_a_result_that_asked_for_the_time_holds_until_then() -> None:
    memo, asked = Memo(), Asked()

    def is_over(moment: int, *, clock: Clock) -> bool:
        asked(moment)
        return clock.reached(moment)

    def run(now: int) -> tuple[bool, ...]:
        return memo.each(is_over, "ab", (10, 20), now=now)

    assert run(5) == (False, False)
    assert run(9) == (False, False)
    assert run(10) == (True, False)
    assert asked.taken() == [(10,), (20,), (10,)]
    assert run(1_000) == (True, True)
    assert asked.taken() == [(20,)], "what is over stays so"


def test_what_is_made_of_the_time_is_made_anew_every_second() -> None:
    memo = Memo()

    def stamp(name: str, *, clock: Clock) -> tuple[str, int]:
        return name, clock.now

    assert [memo.each(stamp, "a", ("x",), now=now)[0][1] for now in (5, 5, 6, 4)] == [5, 5, 6, 4]


def test_after_a_failure_everything_is_looked_at_again() -> None:
    memo = Memo()

    def halve(number: int) -> int:
        if number % 2:
            raise ValueError(number)
        return number // 2

    assert memo.each(halve, "ab", (2, 4)) == (1, 2)
    with pytest.raises(ValueError, match="5"):
        memo.each(halve, "abc", (8, 4, 5))
    assert memo.each(halve, "bc", (4, 6)) == (2, 3)


# The same decisions

POOL = PodDefaults(image="tollway", engine_images={}, cpu_milli=1000, memory_bytes=1 << 30, namespace="ml")
WITH_PODS = replace(CLUSTER, pods=POOL)
NAMES = st.sampled_from(("a", "b", "other/a"))
VALUES = st.sampled_from(
    ("sk-one-of-four-values-aaaa", "sk-one-of-four-values-bbbb", "sk-one-of-four-values-cccc", "short")
)
MODELS: tuple[dict[str, Any] | None, ...] = (
    llama(),
    llama(aliases=["x", "b"], pricing={"perMillionInputTokens": "1"}),
    llama(modelId="a", allowedNamespaces=["*"]),
    llama(modelId="c", fallbacks=[{"modelId": "b"}, {"modelId": "x"}]),
    llama(fallbacks=[{"modelId": "y"}], limits={"contextTokens": 64}),
    llama(engine={"name": "nothing"}),
    {
        "engine": {"name": "remote"},
        "remote": {"url": "https://far.example/v1", "secretRef": {"name": "a", "key": KEY_FIELD}},
    },
    {
        "engine": {"name": "vllm"},
        "source": {"uri": "hf://some/model-7B", "secretRef": {"name": "b"}},
        "resources": {"gpus": 1, "accelerator": "NVIDIA-L4"},
    },
    {"engine": {"name": "vllm"}, "modelId": "d", "source": {"uri": "hf://an/adapter", "adapterOf": "b"}},
    None,  # one that this release can't read
)
PLANS: tuple[dict[str, Any] | None, ...] = (
    {},
    {"credits": {"monthly": 5, "lowWatermark": 1}, "allowedNamespaces": ["*"]},
    {"models": {"ids": ["a", "x"]}, "defaultModels": [{"endpoint": "ChatCompletions", "modelId": "x"}]},
    {"models": {"selector": {"matchLabels": {"tier": "good"}}}},
    {"quotas": [{"name": "q", "meter": "Tokens", "limit": 100, "models": {"ids": ["x"]}}]},
    None,
)
KEYS: tuple[dict[str, Any] | None, ...] = (
    on("a"),
    on("b", account="shared"),
    on("ml/a", state="Suspended"),
    on("a", expiresAt="2027-01-15T08:00:20Z"),
    on("b", rotation={"every": "1h", "overlap": "30s"}),
    on("a", secretRef={"name": "b"}),
    on("a", secretName="elsewhere"),
    on("b", models={"ids": ["x", "a"]}, quotas=[{"name": "q", "meter": "Tokens", "limit": 1}]),
    on("missing"),
    None,
)
CHOICES: Mapping[Any, tuple[dict[str, Any] | None, ...]] = {"ModelDeployment": MODELS, "Plan": PLANS, "ApiKey": KEYS}
KINDS = st.sampled_from(tuple(CHOICES))


class Decisions(RuleBasedStateMachine):
    """Any world's history: after each step, the passes' decisions with everything remembered and with nothing."""

    @initialize(chosen=st.sampled_from((EMBEDDED, CLUSTER, WITH_PODS)))
    def begin(self, chosen: Settings) -> None:
        self.settings = chosen
        self.objects = MemoryObjects()
        self.memo, self.parser = Memo(), Parser()
        self.secrets: dict[tuple[str, str], SecretView] = {}
        self.observed = Observed(NOW, published=Catalogue())
        self.outcome = Outcome()
        self.desired, self.judged = Desired(), ()
        for kind, specs in CHOICES.items():
            for name in ("a", "b"):
                self.objects.put(kind, name, specs[0])

    # What users do

    @rule(kind=KINDS, name=NAMES, number=st.integers(0, 99), good=st.booleans())
    def put(self, kind: Any, name: str, number: int, good: bool) -> None:
        spec = CHOICES[kind][number % len(CHOICES[kind])]
        labels = {"tier": "good"} if good else {}
        unchecked = {"planRef": {"name": "a"}, "engine": {"name": "llamacpp"}, "mood": "good", "state": "Suspended"}
        self.objects.put(kind, name, unchecked if spec is None else spec, labels=labels, unchecked=spec is None)

    @rule(kind=KINDS, name=NAMES)
    def delete(self, kind: Any, name: str) -> None:
        namespace, _, short = name.rpartition("/")
        self.objects.objects.pop((kind, namespace or "ml", short), None)

    @rule(name=NAMES, place=st.sampled_from(("", "", "b", "elsewhere")), value=VALUES, ours=st.booleans())
    def secret(self, name: str, place: str, value: str, ours: bool) -> None:
        namespace, _, short = name.rpartition("/")
        namespace = namespace or "ml"
        owner = self.objects.objects.get(("ApiKey", namespace, short))
        labels = {OWNER_LABEL: short, MANAGED_BY: "tollway"} if ours else {}
        where = (namespace, place or short)
        values = {KEY_FIELD: describe(value), URL_FIELD: describe(self.settings.base_url), "HF_TOKEN": describe(value)}
        owner_uid = owner.uid if owner is not None and ours else None
        self.secrets[where] = SecretView(*where, f"{where}-{value}", labels, owner_uid, NOW - 100, values)

    @rule(name=NAMES, place=st.sampled_from(("", "b", "elsewhere")))
    def lose_secret(self, name: str, place: str) -> None:
        namespace, _, short = name.rpartition("/")
        self.secrets.pop((namespace or "ml", place or short), None)

    # What becomes of decisions

    @rule()
    def publish(self) -> None:
        if self.desired.catalogue is not None:
            self.observed = replace(self.observed, published=self.desired.catalogue)

    @rule()
    def read_again(self) -> None:
        """Equal entries, other objects."""
        if self.observed.published is not None:
            again = Catalogue.model_validate_json(self.observed.published.model_dump_json())
            self.observed = replace(self.observed, published=again)

    @rule()
    def write_statuses(self) -> None:
        for judgement in self.judged:
            raw = self.objects.objects.get(judgement.raw.key)
            if judgement.changed and raw is not None and raw.uid == judgement.raw.uid:
                self.objects.objects[raw.key] = replace(raw, status=judgement.status, resource_version=f"{raw} status")

    @rule(seed=st.integers(0, 1 << 16))
    def deploy(self, seed: int) -> None:
        chance = random.Random(seed)
        states: tuple[Any, ...] = ("RUNNING", "RUNNING", "DEPLOYING", "DEPLOY_FAILED", "UNHEALTHY", "DELETING")
        apps = {}
        for name, config in self.desired.rollout.configs.items():
            state, running = chance.choice(states), chance.randint(0, 1)
            apps[name] = AppStatus(name, state, "ValueError: no", config, running, 1, {"RUNNING": running}, NOW + 5.0)
        memory = self.desired.rollout.memory if apps else Memory()
        self.observed = replace(self.observed, ray=RayStatus(apps), memory=memory)

    # What goes wrong, and passes

    @rule()
    def ray_goes_away(self) -> None:
        self.observed = replace(self.observed, ray=None, ray_error="no answer")

    @rule(there=st.booleans())
    def ledger(self, there: bool) -> None:
        self.observed = replace(self.observed, published=Catalogue() if there else None)

    @rule(seconds=st.sampled_from((1, 10, 40, 700, 4000)))
    def time_passes(self, seconds: int) -> None:
        self.observed = replace(self.observed, now=self.observed.now + seconds)

    @rule(complete=st.booleans(), mib=st.sampled_from((None, 1_000, 100_000)))
    def look(self, complete: bool, mib: int | None) -> None:
        platform = (
            None if mib is None else PlatformStatus(gpu_mib={"NVIDIA-L4": mib}, upgrade="" if mib < 5_000 else "soon")
        )
        self.observed = replace(self.observed, complete=complete, platform=platform)

    @rule(left=st.integers(-1, 3), account=st.sampled_from(("ml/a", "ml/shared")))
    def usage(self, left: int, account: str) -> None:
        used = AccountUsage(NOW + 100, 5, left * 400_000, {"q": 40 * left})
        self.observed = replace(self.observed, usage={**self.observed.usage, account: used})

    @rule(published=st.booleans(), error=st.sampled_from(("", "may not")), not_ours=st.booleans())
    def outcomes(self, published: bool, error: str, not_ours: bool) -> None:
        uids = [raw.uid for raw in self.objects.objects.values() if raw.kind == "ApiKey"][:1]
        self.outcome = Outcome(
            Reach(published, "" if published else "the ledger is away"),
            refused_apps={"model-ml.a": error} if error else {},
            key_errors=dict.fromkeys(uids, error) if error else {},
            not_ours=frozenset(uids if error and not_ours else ()),
        )

    @invariant()
    def decides_the_same(self) -> None:
        if not hasattr(self, "objects"):
            return
        remembered = self.decide(self.parser, self.memo)
        assert remembered == self.decide(Parser(), Memo())
        self.desired, _, self.judged = remembered

    def decide(self, parser: Parser, memo: Memo) -> tuple[Desired, Plan, tuple[Judgement, ...]]:
        found = parser.parse(Snapshot(tuple(self.objects.objects.values()), self.secrets, {}))
        observed = replace(
            self.observed,
            models=found["ModelDeployment"],
            plans=found["Plan"],
            keys=found["ApiKey"],
            secrets=dict(self.secrets),
        )
        desired = build(observed, self.settings, memo)
        plan = decide(observed, desired, self.settings, repair=False, provider_keys_known=True, memo=memo)
        return desired, plan, judge(observed, desired, self.outcome, memo)


TestDecisions = Decisions.TestCase
TestDecisions.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
