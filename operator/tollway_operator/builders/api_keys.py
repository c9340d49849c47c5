"""ApiKeys: which hashes are accepted, on which plan and account. Called by `desired`.

A key's history is in the catalogue itself: the entry of a key that was replaced stays, with `replaced` and the end of
its overlap, so that a restart of the operator forgets none and prolongs none.
"""

from collections.abc import Mapping

from tollway_operator.builders.identity import Ids, permits
from tollway_operator.builders.plans import quotas, resolve_all
from tollway_operator.builders.support import unsupported
from tollway_operator.builders.views import KeyView, PlanView
from tollway_operator.keys import MINIMUM_IMPORTED
from tollway_operator.observed import Observed, Parsed, Problem
from tollway_operator.ports import SecretView
from tollway_operator.resources import ApiKey
from tollway_operator.resources.quantities import epoch_seconds
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import KeyEntry, Limits

_DEFAULT_OVERLAP_MS = 86_400_000


def build_keys(observed: Observed, ids: Ids, plans: tuple[PlanView, ...], settings: Settings) -> tuple[KeyView, ...]:
    """One view an object, oldest first: of two objects with the same secret the older one wins."""
    published: dict[str, list[KeyEntry]] = {}
    for entry in observed.published.keys if observed.published else ():
        published.setdefault(entry.uid, []).append(entry)
    by_name = {view.parsed.full_name: view for view in plans}
    taken: dict[str, str] = {}
    views = []
    for parsed in observed.keys:
        view = _view(parsed, observed, ids, by_name, tuple(published.get(parsed.raw.uid, ())), taken, settings)
        for entry in view.entries:
            taken.setdefault(entry.sha256, parsed.full_name)
        views.append(view)
    return tuple(views)


def _view(
    parsed: Parsed[ApiKey],
    observed: Observed,
    ids: Ids,
    plans: Mapping[str, PlanView],
    published: tuple[KeyEntry, ...],
    taken: Mapping[str, str],
    settings: Settings,
) -> KeyView:
    resource = parsed.resource
    problem = parsed.problem
    if resource is not None:
        problem = unsupported("ApiKey", resource, embedded=settings.embedded)
    if resource is None or problem is not None:
        kept = tuple(entry for entry in published if entry.sha256 not in taken)
        if parsed.raw.spec.get("state") == "Suspended":  # readable whatever else is not
            kept = tuple(entry.model_copy(update={"state": "Suspended"}) for entry in kept)
        return KeyView(parsed, refused=problem, entries=kept, generated=False)

    generated = resource.spec.secret_ref is None
    expired = resource.spec.expires is not None and resource.spec.expires <= observed.now
    secret = observed.secrets.get((resource.namespace, resource.secret_name))
    refused = _plan_problem(resource, plans)
    if refused is not None:
        return KeyView(parsed, refused=refused, generated=generated, expired=expired)
    value = secret.values.get(resource.secret_key) if secret else None
    if generated and secret is not None and secret.owner_uid != parsed.raw.uid:
        if secret.owner_uid is not None:
            message = f"Secret {resource.namespace}/{resource.secret_name} is not ours; set another secretName"
            kept = tuple(entry for entry in published if entry.sha256 not in taken)
            return KeyView(parsed, Problem("SecretNotOurs", message), entries=kept, expired=expired)
        if value is None or all(entry.sha256 != value.sha256 for entry in published):
            value = None  # perhaps ours, perhaps not: `ensure_key` finds out
    if value is None or secret is None:
        return _without_secret(parsed, resource, observed, ids, published, taken, generated, expired)
    if not generated and value.length < MINIMUM_IMPORTED:
        message = f"the key in Secret {secret.name} has {value.length} characters; it needs {MINIMUM_IMPORTED}"
        return KeyView(parsed, refused=Problem("WeakKey", message), generated=False, expired=expired)
    if value.sha256 in taken:
        message = f"{taken[value.sha256]} (older) has the same key; make another one"
        return KeyView(parsed, refused=Problem("DuplicateKey", message), generated=generated, expired=expired)

    before = next((entry for entry in published if entry.sha256 == value.sha256), None)
    others = [entry for entry in published if entry.sha256 != value.sha256 and entry.sha256 not in taken]
    created = before.created if before else observed.now if others else _first_created(secret, observed)
    current = _entry(resource, value.sha256, created, ids)
    replaced = _replaced(resource, others, observed, ids)
    rotated = created if replaced else _rotated_before(parsed)
    every = resource.spec.rotation.every_ms if resource.spec.rotation else None
    return KeyView(
        parsed,
        current=current,
        entries=(current, *replaced),
        prefix=value.prefix,
        last_four=value.last_four,
        rotated_at=rotated,
        rotate_at=created + every // 1000 if every and generated else None,
        generated=generated,
        expired=expired,
    )


def _plan_problem(resource: ApiKey, plans: Mapping[str, PlanView]) -> Problem | None:
    plan = plans.get(resource.plan)
    if plan is None:
        return Problem("PlanNotFound", f"spec.planRef: there is no Plan {resource.plan}")
    raw = plan.parsed.raw
    if plan.parsed.resource is not None:
        allowed: tuple[str, ...] = plan.parsed.resource.spec.allowed_namespaces
    else:
        written = raw.spec.get("allowedNamespaces")
        allowed = tuple(item for item in written if isinstance(item, str)) if isinstance(written, list) else ()
    if not permits(raw.namespace, allowed, resource.namespace):
        message = f"spec.planRef: Plan {resource.plan} doesn't list {resource.namespace} in allowedNamespaces"
        return Problem("NotPermitted", message)
    if plan.entry is None:
        return Problem("PlanNotFound", f"spec.planRef: Plan {resource.plan} is not accepted")
    return None


def _without_secret(
    parsed: Parsed[ApiKey],
    resource: ApiKey,
    observed: Observed,
    ids: Ids,
    published: tuple[KeyEntry, ...],
    taken: Mapping[str, str],
    generated: bool,
    expired: bool,
) -> KeyView:
    """The Secret is gone or was never made: what was accepted lives for its overlap."""
    others = [entry for entry in published if entry.sha256 not in taken]
    refused = None
    if not generated:
        where = f"{resource.namespace}/{resource.secret_name}"
        refused = Problem("SecretNotFound", f"spec.secretRef: no entry {resource.secret_key} in Secret {where}")
    return KeyView(
        parsed,
        refused=refused,
        entries=_replaced(resource, others, observed, ids) if observed.complete else tuple(others),
        generated=generated,
        secret_missing=generated,
        expired=expired,
    )


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


def _replaced(resource: ApiKey, others: list[KeyEntry], observed: Observed, ids: Ids) -> tuple[KeyEntry, ...]:
    """Keys of this object that another one replaced, until their overlap ends. The end is set once."""
    overlap_ms = resource.spec.rotation.overlap_ms if resource.spec.rotation else _DEFAULT_OVERLAP_MS
    kept = []
    for old in others:
        end = old.replaced_until if old.replaced_until is not None else observed.now + overlap_ms // 1000
        if end <= observed.now:
            continue
        entry = _entry(resource, old.sha256, old.created, ids)
        expires = end if entry.expires_at is None else min(end, entry.expires_at)
        kept.append(entry.model_copy(update={"expires_at": expires, "replaced_until": end}))
    return tuple(kept)


def _first_created(secret: SecretView, observed: Observed) -> int:
    return secret.created or observed.now


def _rotated_before(parsed: Parsed[ApiKey]) -> int | None:
    written = parsed.raw.status.get("rotatedAt")
    try:
        return epoch_seconds(written) if isinstance(written, str) else None
    except ValueError:
        return None
