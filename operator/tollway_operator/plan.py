"""What one pass changes, and why: pure data, made from Observed and Desired. `execute` carries it out blindly."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tollway_operator.builders.applications import same
from tollway_operator.builders.desired import Desired
from tollway_operator.builders.views import KeyView
from tollway_operator.keys import KEY_FIELD, MANAGED_BY, OWNER_LABEL, URL_FIELD, describe
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
) -> Plan:
    """`repair`: look also where no difference can be seen from here (a full pass)."""
    details: list[str] = []
    publish = _publish(observed, desired, details)
    keys = _keys(observed, desired, settings, details, repair=repair)
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
    put, changed = _put(observed, desired, details)
    return Plan(publish, keys, providers, sources, remember, put, changed, tuple(details))


def _publish(observed: Observed, desired: Desired, details: list[str]) -> Catalogue | None:
    wanted, there = desired.catalogue, observed.published
    if wanted is None or there is None:
        return None
    changes = [
        *_differences("key", there.keys, wanted.keys, lambda entry: f"{entry.key_id} ({entry.sha256[:8]})"),
        *_differences("model", there.models, wanted.models, lambda entry: f"{entry.model_id} ({entry.state})"),
        *_differences("plan", there.plans, wanted.plans, lambda entry: entry.name),
    ]
    details += changes
    return wanted if changes else None


def _differences(what: str, before: tuple[Any, ...], after: tuple[Any, ...], name: Any) -> list[str]:
    """One line an entry, revocations first."""
    identity = _identity(what)
    old: dict[str, Entry] = {identity(entry): entry for entry in before}
    new: dict[str, Entry] = {identity(entry): entry for entry in after}
    lines = [f"withdraw {what} {name(entry)}" for key, entry in old.items() if key not in new]
    for key, entry in new.items():
        there = old.get(key)
        if there is entry:
            continue
        if there is None:
            lines.append(f"publish {what} {name(entry)}")
        elif there != entry:
            lines.append(f"change {what} {name(entry)}")
    return lines


def _identity(what: str) -> Any:
    match what:
        case "key":
            return lambda entry: entry.sha256
        case "model":
            return lambda entry: entry.model_id
        case _:
            return lambda entry: entry.name


def _keys(
    observed: Observed, desired: Desired, settings: Settings, details: list[str], *, repair: bool
) -> tuple[KeyAction, ...]:
    if not observed.complete:
        return ()  # a Secret that isn't listed yet is not a missing one
    actions = []
    url_hash = describe(settings.base_url).sha256
    published = {entry.sha256 for entry in observed.published.keys} if observed.published else None
    named: dict[str, str | None] = {}  # Secret name by the uid of its ApiKey; None: leave alone
    for view in desired.views.keys:
        raw, resource = view.parsed.raw, view.parsed.resource
        if resource is None or (view.refused is not None and view.refused.reason == "UnsupportedField"):
            named[raw.uid] = None
            continue
        named[raw.uid] = resource.secret_name if view.generated else ""
        if view.refused is not None or not view.generated:
            continue
        secret = observed.secrets.get((raw.namespace, resource.secret_name))
        if _rotation_is_due(view, observed, published):
            actions.append(KeyAction("rotate", raw.namespace, resource.secret_name, raw))
            details.append(f"rotate key {view.parsed.full_name}: its rotation.every has passed")
        elif not _is_whole(secret, raw, url_hash):
            why = "it is missing" if secret is None else "it was changed"
            actions.append(KeyAction("ensure", raw.namespace, resource.secret_name, raw))
            details.append(f"make Secret {raw.namespace}/{resource.secret_name}: {why}")
        elif repair:
            actions.append(KeyAction("ensure", raw.namespace, resource.secret_name, raw))
    for (namespace, name), secret in observed.secrets.items():
        if secret.owner_uid is None or OWNER_LABEL not in secret.labels:
            continue
        if secret.owner_uid in named and named[secret.owner_uid] in (None, name):
            continue
        actions.append(KeyAction("delete", namespace, name, None, secret.uid))
        details.append(f"delete Secret {namespace}/{name}: no ApiKey names it any more")
    return tuple(actions)


def _rotation_is_due(view: KeyView, observed: Observed, published: set[str] | None) -> bool:
    """Only of a key that gateways know: else its replacement would be mistaken for the first one."""
    if view.rotate_at is None or view.current is None or published is None or view.expired:
        return False
    return observed.now >= view.rotate_at and view.current.sha256 in published


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
    observed: Observed, desired: Desired, details: list[str]
) -> tuple[tuple[Mapping[str, Any], ...] | None, tuple[str, ...]]:
    """The whole set, if Ray has another one."""
    if observed.ray is None or observed.ray_busy:
        return None, ()
    there = observed.ray.apps
    wanted = desired.rollout.configs
    changed = []
    for name, config in wanted.items():
        app = there.get(name)
        if app is None or app.status == "DELETING":
            details.append(f"deploy application {name}: Ray doesn't have it")
        elif not same(app.config, config):
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
