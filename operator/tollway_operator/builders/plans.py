"""Plans: which models each one really gives, and its catalogue entry. Called by `desired`."""

from collections.abc import Iterable, Mapping

from tollway_operator.builders.identity import Ids, permits
from tollway_operator.builders.support import unsupported
from tollway_operator.builders.views import ModelView, PlanView
from tollway_operator.observed import Observed, Parsed, Problem
from tollway_operator.resources import Plan
from tollway_operator.resources import Quota as QuotaSpec
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import Endpoint, Limits, PlanEntry, Quota


def build_plans(
    observed: Observed, ids: Ids, models: tuple[ModelView, ...], settings: Settings
) -> tuple[PlanView, ...]:
    """One view an object, oldest first."""
    published = {entry.name: entry for entry in observed.published.plans} if observed.published else {}
    offered = {view.parsed.full_name: view for view in models if view.entry is not None}
    return tuple(_view(parsed, ids, offered, published.get(parsed.full_name), settings) for parsed in observed.plans)


def _view(
    parsed: Parsed[Plan],
    ids: Ids,
    offered: Mapping[str, ModelView],
    published: PlanEntry | None,
    settings: Settings,
) -> PlanView:
    resource = parsed.resource
    if resource is None:
        return PlanView(parsed, refused=parsed.problem, entry=published)
    problem = unsupported("Plan", resource, embedded=settings.embedded)
    if problem is not None:
        return PlanView(parsed, refused=problem, entry=published)
    spec = resource.spec
    unresolved: list[Problem] = []
    given: set[str] = set()
    if spec.models is None:
        given.update(view.model_id for view in offered.values() if _may(view, resource.namespace))
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
                view.model_id
                for view in offered.values()
                if _may(view, resource.namespace) and _matches(view.parsed.raw.labels, labels)
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


def _resolve(wanted: str, ids: Ids, offered: Mapping[str, ModelView], namespace: str, path: str) -> str | Problem:
    owner = ids.owner(wanted)
    if owner is None:
        return Problem("ModelNotFound", f"{path}: there is no model {wanted}")
    view = offered.get(owner)
    if view is None:
        return Problem("ModelNotFound", f"{path}: {wanted} ({owner}) is not accepted yet")
    if not _may(view, namespace):
        return Problem("NotPermitted", f"{path}: {owner} doesn't list {namespace} in allowedNamespaces")
    return view.model_id


def _may(view: ModelView, namespace: str) -> bool:
    raw = view.parsed.raw
    if view.parsed.resource is not None:
        return permits(raw.namespace, view.parsed.resource.spec.allowed_namespaces, namespace)
    allowed = raw.spec.get("allowedNamespaces")  # of an object that this release can't read as a whole
    names = [item for item in allowed if isinstance(item, str)] if isinstance(allowed, list) else []
    return permits(raw.namespace, names, namespace)


def _matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())
