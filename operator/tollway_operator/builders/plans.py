"""Plans: which models each one really gives, and its catalogue entry. Called by `desired`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tollway_operator.builders.identity import Ids, permits
from tollway_operator.builders.support import unsupported
from tollway_operator.builders.views import ModelView, PlanView
from tollway_operator.memo import Memo
from tollway_operator.observed import Observed, Parsed, Problem
from tollway_operator.resources import Plan
from tollway_operator.resources import Quota as QuotaSpec
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import Endpoint, Limits, PlanEntry, Quota


@dataclass(frozen=True, slots=True)
class Offer:
    """A model, as far as plans ask."""

    full_name: str
    model_id: str
    namespace: str
    allowed: tuple[str, ...]
    labels: Mapping[str, str]


def build_plans(
    observed: Observed, ids: Ids, models: tuple[ModelView, ...], settings: Settings, memo: Memo
) -> tuple[PlanView, ...]:
    """One view an object, oldest first."""
    uids = [parsed.raw.uid for parsed in observed.plans]
    published = {entry.name: entry for entry in observed.published.plans} if observed.published else {}
    names = [view.parsed.full_name for view in models]
    offered = memo.once(_offered, tuple(memo.each(_offer, names, models)))
    mentioned = memo.each(_mentioned, uids, [parsed.resource for parsed in observed.plans])
    return tuple(
        memo.each(
            _view,
            uids,
            observed.plans,
            [ids.of(models) for models in mentioned],
            [published.get(parsed.full_name) for parsed in observed.plans],
            common=(offered, settings.embedded),
        )
    )


def _offered(offers: tuple[Offer | None, ...]) -> Mapping[str, Offer]:
    """By full name."""
    return {offer.full_name: offer for offer in offers if offer is not None}


def _offer(view: ModelView) -> Offer | None:
    if view.entry is None:
        return None
    raw = view.parsed.raw
    if view.parsed.resource is not None:
        allowed = view.parsed.resource.spec.allowed_namespaces
    else:
        allowed = names_in(raw.spec.get("allowedNamespaces"))
    return Offer(view.parsed.full_name, view.model_id, raw.namespace, allowed, raw.labels)


def names_in(written: object) -> tuple[str, ...]:
    """A list of names in an object that this release can't read as a whole."""
    return tuple(item for item in written if isinstance(item, str)) if isinstance(written, list) else ()


def _mentioned(resource: Plan | None) -> tuple[str, ...]:
    """The models that a plan names."""
    if resource is None:
        return ()
    spec = resource.spec
    ids = [*(spec.models.ids or () if spec.models else ()), *(default.model_id for default in spec.default_models)]
    return (*ids, *quota_models(spec.quotas))


def quota_models(written: Iterable[QuotaSpec]) -> list[str]:
    return [model for quota in written if quota.models for model in quota.models.ids]


def _view(
    parsed: Parsed[Plan],
    ids: Ids,
    published: PlanEntry | None,
    offered: Mapping[str, Offer],
    embedded: bool,
) -> PlanView:
    resource = parsed.resource
    if resource is None:
        return PlanView(parsed, refused=parsed.problem, entry=published)
    problem = unsupported("Plan", resource, embedded=embedded)
    if problem is not None:
        return PlanView(parsed, refused=problem, entry=published)
    spec = resource.spec
    unresolved: list[Problem] = []
    given: set[str] = set()
    if spec.models is None:
        given.update(offer.model_id for offer in offered.values() if _may(offer, resource.namespace))
    else:
        for wanted in spec.models.ids or ():
            found = _resolve(wanted, ids, offered, resource.namespace, "spec.models.ids")
            if isinstance(found, Problem):
                unresolved.append(found)
            else:
                given.add(found)
        if spec.models.selector is not None:
            labels = spec.models.selector.match_labels
            given.update(
                offer.model_id
                for offer in offered.values()
                if _may(offer, resource.namespace) and _matches(offer.labels, labels)
            )
    defaults: dict[Endpoint, str] = {}
    for default in spec.default_models:
        found = _resolve(default.model_id, ids, offered, resource.namespace, "spec.defaultModels")
        if isinstance(found, str) and found not in given:
            found = Problem("NotPermitted", f"spec.defaultModels: {default.model_id} is not among spec.models")
        if isinstance(found, Problem):
            unresolved.append(found)
        else:
            defaults[default.endpoint] = found
    limits = spec.limits
    entry = PlanEntry(
        name=resource.full_name,
        display_name=resource.display_name,
        tier=spec.tier,
        limits=Limits(
            requests_per_minute=limits.requests_per_minute if limits else None,
            tokens_per_minute=limits.tokens_per_minute if limits else None,
            concurrent_requests=limits.concurrent_requests if limits else None,
            credits_monthly_micro=spec.credits.monthly_micro if spec.credits else None,
            file_size_bytes=limits.file_size_bytes if limits else None,
            storage_bytes=limits.storage_bytes if limits else None,
            trial_seconds=spec.trial.duration_seconds if spec.trial else None,
            trial_requests=spec.trial.requests if spec.trial else None,
            quotas=quotas(spec.quotas, ids),
        ),
        low_watermark_micro=spec.credits.low_watermark_micro if spec.credits else None,
        model_ids=tuple(sorted(given)),
        endpoints=spec.endpoints,
        default_models=defaults,
        unsupported_parameters=spec.unsupported_parameters,
    )
    return PlanView(parsed, unresolved=tuple(dict.fromkeys(unresolved)), entry=entry)


def quotas(written: Iterable[QuotaSpec], ids: Ids) -> tuple[Quota, ...]:
    """Ids that no model has stay as they are: they count nothing, and do once such a model comes."""
    return tuple(
        Quota(
            name=quota.name,
            meter=quota.meter,
            limit=quota.limit,
            period=quota.period,
            model_ids=resolve_all(quota.models.ids, ids) if quota.models else None,
        )
        for quota in written
    )


def resolve_all(wanted: Iterable[str], ids: Ids) -> tuple[str, ...]:
    """ModelIds for ids and aliases."""
    return tuple(sorted({ids.model_ids.get(item, item) for item in wanted}))


def _resolve(wanted: str, ids: Ids, offered: Mapping[str, Offer], namespace: str, path: str) -> str | Problem:
    owner = ids.owner(wanted)
    if owner is None:
        return Problem("ModelNotFound", f"{path}: there is no model {wanted}")
    offer = offered.get(owner)
    if offer is None:
        return Problem("ModelNotFound", f"{path}: {wanted} ({owner}) is not accepted yet")
    if not _may(offer, namespace):
        return Problem("NotPermitted", f"{path}: {owner} doesn't list {namespace} in allowedNamespaces")
    return offer.model_id


def _may(offer: Offer, namespace: str) -> bool:
    return permits(offer.namespace, offer.allowed, namespace)


def _matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())
