"""ApiKeys: which hashes are accepted, on which plan and account. Called by `desired`.

A key's history is in the catalogue itself: the entry of a key that was replaced stays, with `replaced` and the end of
its overlap, so that a restart of the operator forgets none and prolongs none.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter

from tollway_operator.builders.identity import NO_IDS, Ids, permits
from tollway_operator.builders.plans import names_in, quota_models, quotas, resolve_all
from tollway_operator.builders.support import unsupported
from tollway_operator.builders.views import KeyView, PlanView
from tollway_operator.keys import MINIMUM_IMPORTED
from tollway_operator.memo import Clock, Memo
from tollway_operator.observed import Observed, Parsed, Problem
from tollway_operator.ports import SecretView
from tollway_operator.resources import ApiKey
from tollway_operator.resources.quantities import epoch_seconds
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import KeyEntry, Limits

_uid, _hash, _entries = attrgetter("uid"), attrgetter("sha256"), attrgetter("entries")
_DEFAULT_OVERLAP_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class _Names:
    """What an ApiKey names."""

    plan: str = ""
    secret: tuple[str, str] = ("", "")
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Offer:
    """A Plan, as far as its ApiKeys ask."""

    namespace: str
    allowed: tuple[str, ...]
    accepted: bool


def build_keys(
    observed: Observed, ids: Ids, plans: tuple[PlanView, ...], settings: Settings, memo: Memo
) -> tuple[KeyView, ...]:
    """One view an object, oldest first: of two objects with the same secret the older one wins."""
    uids = memo.once(_uids, observed.keys)
    named = memo.each(_names, uids, memo.once(_resources, observed.keys))
    plan_names = tuple(view.parsed.full_name for view in plans)
    offers = memo.once(_by_name, plan_names, memo.each(_offer, plan_names, plans))
    entries = observed.published.keys if observed.published else ()
    columns = (
        observed.keys,
        memo.once(_secrets, named, observed.secrets),
        memo.once(_offers, named, offers),
        memo.once(_ids, named, ids),
        memo.once(_latest, uids, entries),
        memo.once(_earlier, uids, memo.once(_several, entries)),
    )
    common = (observed.complete, settings.embedded)
    views = memo.each(_alone, uids, *columns, common=common, now=observed.now)
    contested = memo.once(_contested, views, entries)
    if not contested:
        return views
    taken: dict[str, str] = {}
    settled = list(views)
    for index, (parsed, secret, plan, meant, latest, earlier) in enumerate(zip(*columns, strict=True)):
        published = _together(latest, earlier)
        if not contested.isdisjoint(entry.sha256 for entry in (*views[index].entries, *published)):
            clock = Clock(observed.now)
            settled[index] = view = _view(parsed, secret, plan, meant, published, *common, taken, clock=clock)
            for entry in view.entries:
                taken.setdefault(entry.sha256, view.parsed.full_name)
    return tuple(settled)


# Columns for the memo: what there is of what each object names.


def _uids(keys: tuple[Parsed[ApiKey], ...]) -> tuple[str, ...]:
    return tuple(parsed.raw.uid for parsed in keys)


def _resources(keys: tuple[Parsed[ApiKey], ...]) -> tuple[ApiKey | None, ...]:
    return tuple(parsed.resource for parsed in keys)


def _secrets(named: tuple[_Names, ...], secrets: Mapping[tuple[str, str], SecretView]) -> tuple[SecretView | None, ...]:
    return tuple(map(secrets.get, map(attrgetter("secret"), named)))


def _offers(named: tuple[_Names, ...], offers: Mapping[str, _Offer]) -> tuple[_Offer | None, ...]:
    return tuple(map(offers.get, map(attrgetter("plan"), named)))


def _ids(named: tuple[_Names, ...], ids: Ids) -> tuple[Ids, ...]:
    return tuple(ids.of(names.models) if names.models else NO_IDS for names in named)


def _latest(uids: tuple[str, ...], published: tuple[KeyEntry, ...]) -> tuple[KeyEntry | None, ...]:
    """The last entry of each object; nearly none has another one."""
    return tuple(map(dict(zip(map(_uid, published), published, strict=True)).get, uids))


def _several(published: tuple[KeyEntry, ...]) -> Mapping[str, tuple[KeyEntry, ...]]:
    """All but the last entry of objects that have more than one."""
    if len(set(map(_uid, published))) == len(published):
        return {}
    counts = Counter(map(_uid, published))
    found: dict[str, tuple[KeyEntry, ...]] = {}
    for entry in published:
        if counts[entry.uid] > 1:
            found[entry.uid] = (*found.get(entry.uid, ()), entry)
    return {uid: entries[:-1] for uid, entries in found.items()}


def _earlier(uids: tuple[str, ...], several: Mapping[str, tuple[KeyEntry, ...]]) -> tuple[tuple[KeyEntry, ...], ...]:
    return tuple(several.get(uid, ()) for uid in uids)


def _together(latest: KeyEntry | None, earlier: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
    return earlier if latest is None else (*earlier, latest)


def _by_name(names: tuple[str, ...], offers: tuple[_Offer, ...]) -> Mapping[str, _Offer]:
    return dict(zip(names, offers, strict=True))


def _names(resource: ApiKey | None) -> _Names:
    if resource is None:
        return _Names()
    models = [*(resource.spec.models.ids if resource.spec.models else ()), *quota_models(resource.spec.quotas)]
    return _Names(resource.plan, (resource.namespace, resource.secret_name), tuple(models))


def _offer(view: PlanView) -> _Offer:
    raw, resource = view.parsed.raw, view.parsed.resource
    written = raw.spec.get("allowedNamespaces")
    allowed = resource.spec.allowed_namespaces if resource is not None else names_in(written)
    return _Offer(raw.namespace, allowed, view.entry is not None)


def _contested(views: tuple[KeyView, ...], published: tuple[KeyEntry, ...]) -> frozenset[str]:
    """Hashes that more than one object has or had."""
    entries = tuple(chain.from_iterable(map(_entries, views)))
    had = dict(zip(map(_hash, published), map(_uid, published), strict=True))
    has = dict(zip(map(_hash, entries), map(_uid, entries), strict=True))
    if len(has) == len(entries) and {**had, **has} == {**has, **had}:
        return frozenset()  # nearly always, and found quickly
    claims = {(entry.sha256, entry.uid) for entry in (*published, *entries)}
    objects = Counter(sha256 for sha256, _ in claims)
    return frozenset(sha256 for sha256, count in objects.items() if count > 1)


def _alone(
    parsed: Parsed[ApiKey],
    secret: SecretView | None,
    plan: _Offer | None,
    ids: Ids,
    latest: KeyEntry | None,
    earlier: tuple[KeyEntry, ...],
    complete: bool,
    embedded: bool,
    *,
    clock: Clock,
) -> KeyView:
    """As if no other object had its secret: nearly always so."""
    return _view(parsed, secret, plan, ids, _together(latest, earlier), complete, embedded, {}, clock=clock)


def _view(
    parsed: Parsed[ApiKey],
    secret: SecretView | None,
    plan: _Offer | None,
    ids: Ids,
    published: tuple[KeyEntry, ...],
    complete: bool,
    embedded: bool,
    taken: Mapping[str, str],
    *,
    clock: Clock,
) -> KeyView:
    """`plan` is the one that it names, `published` are its entries that gateways have, `taken` are hashes that older
    objects have, with these objects' names."""
    resource = parsed.resource
    problem = parsed.problem
    if resource is not None:
        problem = unsupported("ApiKey", resource, embedded=embedded)
    if resource is None or problem is not None:
        kept = tuple(entry for entry in published if entry.sha256 not in taken)
        if parsed.raw.spec.get("state") == "Suspended":  # readable whatever else is not
            kept = tuple(entry.model_copy(update={"state": "Suspended"}) for entry in kept)
        return KeyView(parsed, refused=problem, secret=secret, entries=kept, generated=False)

    generated = resource.spec.secret_ref is None
    expired = resource.spec.expires is not None and clock.reached(resource.spec.expires)
    view = KeyView(parsed, secret=secret, generated=generated, expired=expired)
    refused = _plan_problem(resource, plan)
    if refused is not None:
        return replace(view, refused=refused)
    value = secret.values.get(resource.secret_key) if secret else None
    if generated and secret is not None and secret.owner_uid != parsed.raw.uid:
        if secret.owner_uid is not None:
            message = f"Secret {resource.namespace}/{resource.secret_name} is not ours; set another secretName"
            kept = tuple(entry for entry in published if entry.sha256 not in taken)
            return replace(view, refused=Problem("SecretNotOurs", message), entries=kept, generated=True)
        if value is None or all(entry.sha256 != value.sha256 for entry in published):
            value = None  # perhaps ours, perhaps not: `ensure_key` finds out
    if value is None or secret is None:
        others = [entry for entry in published if entry.sha256 not in taken]
        return _without_secret(view, resource, others, ids, complete, clock)
    if not generated and value.length < MINIMUM_IMPORTED:
        message = f"the key in Secret {secret.name} has {value.length} characters; it needs {MINIMUM_IMPORTED}"
        return replace(view, refused=Problem("WeakKey", message))
    if value.sha256 in taken:
        message = f"{taken[value.sha256]} (older) has the same key; make another one"
        return replace(view, refused=Problem("DuplicateKey", message))

    before = next((entry for entry in published if entry.sha256 == value.sha256), None)
    others = [entry for entry in published if entry.sha256 != value.sha256 and entry.sha256 not in taken]
    created = before.created if before is not None else secret.created
    if before is None and (others or not created):  # it replaces another one: now
        created = clock.now
    current = _entry(resource, value.sha256, created, ids)
    replaced = _replaced(resource, others, ids, clock)
    every = resource.spec.rotation.every_ms if resource.spec.rotation else None
    return replace(
        view,
        current=current,
        known=before is not None,
        entries=(current, *replaced),
        prefix=value.prefix,
        last_four=value.last_four,
        rotated_at=created if replaced else _rotated_before(parsed),
        rotate_at=created + every // 1000 if every and generated else None,
    )


def _plan_problem(resource: ApiKey, plan: _Offer | None) -> Problem | None:
    if plan is None:
        return Problem("PlanNotFound", f"spec.planRef: there is no Plan {resource.plan}")
    if not permits(plan.namespace, plan.allowed, resource.namespace):
        message = f"spec.planRef: Plan {resource.plan} doesn't list {resource.namespace} in allowedNamespaces"
        return Problem("NotPermitted", message)
    if not plan.accepted:
        return Problem("PlanNotFound", f"spec.planRef: Plan {resource.plan} is not accepted")
    return None


def _without_secret(
    view: KeyView, resource: ApiKey, others: list[KeyEntry], ids: Ids, complete: bool, clock: Clock
) -> KeyView:
    """The Secret is gone or was never made: what was accepted lives for its overlap."""
    refused = None
    if not view.generated:
        where = f"{resource.namespace}/{resource.secret_name}"
        refused = Problem("SecretNotFound", f"spec.secretRef: no entry {resource.secret_key} in Secret {where}")
    entries = _replaced(resource, others, ids, clock) if complete else tuple(others)
    return replace(view, refused=refused, entries=entries, secret_missing=view.generated)


def _entry(resource: ApiKey, sha256: str, created: int, ids: Ids) -> KeyEntry:
    spec = resource.spec
    return KeyEntry(
        sha256=sha256,
        key_id=resource.full_name,
        uid=resource.metadata.uid,
        account=resource.account,
        plan=resource.plan,
        state=spec.state,
        created=created,
        expires_at=spec.expires,
        limits=Limits(
            requests_per_minute=spec.limits.requests_per_minute if spec.limits else None,
            tokens_per_minute=spec.limits.tokens_per_minute if spec.limits else None,
            concurrent_requests=spec.limits.concurrent_requests if spec.limits else None,
            credits_monthly_micro=spec.credits.monthly_micro if spec.credits else None,
            quotas=quotas(spec.quotas, ids),
        ),
        model_ids=resolve_all(spec.models.ids, ids) if spec.models else None,
        endpoints=spec.endpoints,
    )


def _replaced(resource: ApiKey, others: list[KeyEntry], ids: Ids, clock: Clock) -> tuple[KeyEntry, ...]:
    """Keys of this object that another one replaced, until their overlap ends. The end is set once."""
    overlap_ms = resource.spec.rotation.overlap_ms if resource.spec.rotation else _DEFAULT_OVERLAP_MS
    kept = []
    for old in others:
        end = old.replaced_until if old.replaced_until is not None else clock.now + overlap_ms // 1000
        if clock.reached(end):
            continue
        entry = _entry(resource, old.sha256, old.created, ids)
        expires = end if entry.expires_at is None else min(end, entry.expires_at)
        kept.append(entry.model_copy(update={"expires_at": expires, "replaced_until": end}))
    return tuple(kept)


def _rotated_before(parsed: Parsed[ApiKey]) -> int | None:
    written = parsed.raw.status.get("rotatedAt")
    try:
        return epoch_seconds(written) if isinstance(written, str) else None
    except ValueError:
        return None
