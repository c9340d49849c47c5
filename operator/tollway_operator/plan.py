"""What one pass changes, and why: pure data, made from Observed and Desired. `execute` carries it out blindly."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, Literal

from tollway_operator.builders.applications import same
from tollway_operator.builders.desired import Desired
from tollway_operator.builders.views import KeyView, uid_of
from tollway_operator.keys import KEY_FIELD, MANAGED_BY, OWNER_LABEL, URL_FIELD, describe
from tollway_operator.memo import Clock, Memo
from tollway_operator.observed import Memory, Observed
from tollway_operator.ports import Raw, SecretView
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import Catalogue, Entry


@dataclass(frozen=True, slots=True)
class KeyAction:
    """`owner` is the ApiKey; None for a Secret of ours whose ApiKey is gone."""

    verb: Literal["ensure", "rotate", "delete"]
    namespace: str
    secret: str
    owner: Raw | None
    uid: str = ""  # of the Secret to delete


@dataclass(frozen=True, slots=True)
class Plan:
    """None and () mean: nothing to do there. In the order in which it is carried out."""

    publish: Catalogue | None = None
    keys: tuple[KeyAction, ...] = ()
    provider_keys: Mapping[str, tuple[str, str, str]] | None = None
    source_keys: Mapping[str, tuple[str, str, str]] | None = None
    remember: Memory | None = None
    put: tuple[Mapping[str, Any], ...] | None = None
    changed_apps: tuple[str, ...] = ()  # of `put`: what differs from what Ray has
    details: tuple[str, ...] = field(default=())

    @property
    def empty(self) -> bool:
        return not self.details


def decide(
    observed: Observed,
    desired: Desired,
    settings: Settings,
    *,
    repair: bool,
    provider_keys_known: bool,
    source_keys_known: bool = True,
    memo: Memo | None = None,
) -> Plan:
    """`repair`: look also where no difference can be seen from here (a full pass). `memo`: what earlier calls worked
    out."""
    memo = memo or Memo()
    details: list[str] = []
    publish = _publish(observed, desired, details)
    keys = _keys(observed, desired, settings, details, memo, repair=repair)
    providers = None
    if repair or not provider_keys_known:
        providers = desired.provider_keys
        if providers and not provider_keys_known:
            details.append(f"copy {len(providers)} provider keys")
    sources = None
    if repair or not source_keys_known:
        sources = desired.source_keys
        if sources and not source_keys_known:
            details.append(f"copy {len(sources)} entries of sources' Secrets")
    remember = desired.rollout.memory if desired.rollout.memory != observed.memory else None
    if remember is not None:
        details.append("remember the state of applications")
    put, changed = _put(observed, desired, details, memo)
    return Plan(publish, keys, providers, sources, remember, put, changed, tuple(details))


def _publish(observed: Observed, desired: Desired, details: list[str]) -> Catalogue | None:
    wanted, there = desired.catalogue, observed.published
    if wanted is None or there is None:
        return None
    changes = [
        *_differences("key", _KEY_ID, there.keys, wanted.keys, lambda entry: f"{entry.key_id} ({entry.sha256[:8]})"),
        *_differences(
            "model", _MODEL_ID, there.models, wanted.models, lambda entry: f"{entry.model_id} ({entry.state})"
        ),
        *_differences("plan", _PLAN_ID, there.plans, wanted.plans, lambda entry: entry.name),
    ]
    details += changes
    return wanted if changes else None


_KEY_ID, _MODEL_ID, _PLAN_ID = attrgetter("sha256"), attrgetter("model_id"), attrgetter("name")


def _differences(
    what: str,
    identity: Callable[[Any], str],
    before: tuple[Any, ...],
    after: tuple[Any, ...],
    name: Callable[[Any], str],
) -> list[str]:
    """One line an entry, revocations first."""
    if before == after:
        return []
    old: dict[str, Entry] = dict(zip(map(identity, before), before, strict=True))
    new: dict[str, Entry] = dict(zip(map(identity, after), after, strict=True))
    lines = [f"withdraw {what} {name(old[key])}" for key in old if key not in new]
    for key, entry in ((key, entry) for key, entry in new.items() if old.get(key) is not entry):
        there = old.get(key)
        if there is None:
            lines.append(f"publish {what} {name(entry)}")
        elif there != entry:
            lines.append(f"change {what} {name(entry)}")
    return lines


@dataclass(frozen=True, slots=True)
class _KeyDecision:
    """About the Secret of one ApiKey. `named` is its name; "" of one that isn't ours to make, None: leave all alone."""

    named: str | None
    action: KeyAction | None = None
    why: str = ""
    check: KeyAction | None = None  # for a full pass: nothing can be seen from here
    secret: str = ""  # uid of the Secret that it has


def _keys(
    observed: Observed, desired: Desired, settings: Settings, details: list[str], memo: Memo, *, repair: bool
) -> tuple[KeyAction, ...]:
    if not observed.complete:
        return ()  # a Secret that isn't listed yet is not a missing one
    views = desired.views.keys
    uids = tuple(map(uid_of, views))
    decisions = memo.each(_key_decision, uids, views, common=(describe(settings.base_url).sha256,), now=observed.now)
    actions = [*memo.once(_actions, decisions)]
    details += memo.once(_reasons, decisions)
    if repair:
        actions += [decision.check for decision in decisions if decision.check is not None]
    for orphan in memo.once(_orphans, uids, decisions, observed.secrets):
        actions.append(KeyAction("delete", orphan.namespace, orphan.name, None, orphan.uid))
        details.append(f"delete Secret {orphan.namespace}/{orphan.name}: no ApiKey names it any more")
    return tuple(actions)


def _actions(decisions: tuple[_KeyDecision, ...]) -> tuple[KeyAction, ...]:
    return tuple(decision.action for decision in decisions if decision.action is not None)


def _reasons(decisions: tuple[_KeyDecision, ...]) -> tuple[str, ...]:
    return tuple(decision.why for decision in decisions if decision.action is not None)


def _orphans(
    uids: tuple[str, ...], decisions: tuple[_KeyDecision, ...], secrets: Mapping[tuple[str, str], SecretView]
) -> tuple[SecretView, ...]:
    """Secrets of ours that no ApiKey names any more."""
    kept = {decision.secret for decision in decisions}
    others = [secret for secret in secrets.values() if secret.uid not in kept]
    ours = [secret for secret in others if secret.owner_uid is not None and OWNER_LABEL in secret.labels]
    if not ours:
        return ()
    named = {uid: decision.named for uid, decision in zip(uids, decisions, strict=True)}
    return tuple(secret for secret in ours if named.get(secret.owner_uid or "", _GONE) not in (None, secret.name))


_GONE = ""
"""What an ApiKey that isn't there names."""


def _key_decision(view: KeyView, url_hash: str, *, clock: Clock) -> _KeyDecision:
    raw, resource = view.parsed.raw, view.parsed.resource
    if resource is None or (view.refused is not None and view.refused.reason == "UnsupportedField"):
        return _KeyDecision(None)
    if not view.generated:
        return _KeyDecision("")
    name = resource.secret_name
    secret = view.secret.uid if view.secret is not None and view.secret.owner_uid == raw.uid else ""
    if view.refused is not None:
        return _KeyDecision(name, secret=secret)
    if _rotation_is_due(view, clock):
        why = f"rotate key {view.parsed.full_name}: its rotation.every has passed"
        return _KeyDecision(name, KeyAction("rotate", raw.namespace, name, raw), why, secret=secret)
    ensure = KeyAction("ensure", raw.namespace, name, raw)
    if _is_whole(view.secret, raw, url_hash):
        return _KeyDecision(name, check=ensure, secret=secret)
    why = "it is missing" if view.secret is None else "it was changed"
    return _KeyDecision(name, ensure, f"make Secret {raw.namespace}/{name}: {why}", secret=secret)


def _rotation_is_due(view: KeyView, clock: Clock) -> bool:
    """Only of a key that gateways know: else its replacement would be mistaken for the first one."""
    return view.known and not view.expired and view.rotate_at is not None and clock.reached(view.rotate_at)


def _is_whole(secret: SecretView | None, owner: Raw, url_hash: str) -> bool:
    if secret is None or secret.owner_uid != owner.uid:
        return False
    if KEY_FIELD not in secret.values or secret.values.get(URL_FIELD) is None:
        return False
    return (
        secret.values[URL_FIELD].sha256 == url_hash
        and OWNER_LABEL in secret.labels
        and secret.labels.get(MANAGED_BY) == "tollway"
    )


def _put(
    observed: Observed, desired: Desired, details: list[str], memo: Memo
) -> tuple[tuple[Mapping[str, Any], ...] | None, tuple[str, ...]]:
    """The whole set, if Ray has another one."""
    if observed.ray is None or observed.ray_busy:
        return None, ()
    there = observed.ray.apps
    wanted = desired.rollout.configs
    changed = []
    apps = [there.get(name) for name in wanted]
    equal = memo.each(same, wanted, [app.config if app else None for app in apps], wanted.values())
    for name, app, is_same in zip(wanted, apps, equal, strict=True):
        if app is None or app.status == "DELETING":
            details.append(f"deploy application {name}: Ray doesn't have it")
        elif not is_same:
            back = " (back to the last good version)" if name in desired.rollout.rolled_back else ""
            details.append(f"deploy application {name}: Ray has another version{back}")
        else:
            continue
        changed.append(name)
    gone = [name for name, app in there.items() if name not in wanted and app.config and app.status != "DELETING"]
    for name in gone:
        why = "to start it afresh" if name in desired.rollout.restarting else "its requests have ended"
        details.append(f"remove application {name}: {why}")
    if not changed and not gone:
        return None, ()
    return tuple(wanted.values()), tuple(changed)
