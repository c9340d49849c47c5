"""What should exist, from what was observed: the builders in their order. Called by `reconcile`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tollway_operator.builders import applications
from tollway_operator.builders.api_keys import build_keys
from tollway_operator.builders.identity import assign
from tollway_operator.builders.models import build_models
from tollway_operator.builders.plans import build_plans
from tollway_operator.builders.pools import Demand
from tollway_operator.builders.rollout import Rollout, roll_out
from tollway_operator.builders.sources import needs, secret_files
from tollway_operator.builders.states import AppView, app_view
from tollway_operator.builders.views import ModelView, Views
from tollway_operator.observed import Observed
from tollway_operator.settings import Settings
from tollway_serving.contract.applications import MODEL_ROUTE_PREFIX
from tollway_serving.contract.catalogue import Catalogue, KeyEntry, ModelEntry, PlanEntry

_GUARD_FROM = 10
"""Of fewer absent keys than this nobody needs an override to withdraw them."""
_SERVE_PORT = 8000
"""Ray's own default."""


@dataclass(frozen=True, slots=True)
class Desired:
    """`catalogue` is None where the ledger doesn't say what it has: what isn't known can't be kept."""

    views: Views = field(default_factory=Views)
    catalogue: Catalogue | None = None
    rollout: Rollout = field(default_factory=Rollout)
    apps: Mapping[str, AppView] = field(default_factory=dict)  # by application, as it is now
    demands: tuple[Demand, ...] | None = None  # pods for models; None: nobody makes any, or not all objects are known
    provider_keys: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    source_keys: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    kept_keys: int = 0  # absent keys that the guard keeps


def build(observed: Observed, settings: Settings) -> Desired:
    settings = replace(settings, models_url=_models_url(observed, settings))
    ids = assign(observed.models)
    models = build_models(observed, ids, settings)
    plans = build_plans(observed, ids, models, settings)
    keys = build_keys(observed, ids, plans, settings)
    views = Views(models, plans, keys)
    before = {entry.name: entry.state for entry in observed.published.models} if observed.published else {}
    apps = {
        view.app: app_view(view.app, observed.ray, before.get(view.parsed.full_name)) for view in models if view.app
    }
    wanted = [applications.gateway(settings)]
    for view in models:
        adapters = [other for other in models if other.base == view.parsed.full_name]
        if (app := applications.model(view, adapters, settings)) is not None:
            wanted.append(app)
    catalogue, kept = _catalogue(views, apps, observed, settings)
    rollout = roll_out(wanted, observed)
    pods = settings.pods is not None and observed.complete
    return Desired(
        views=views,
        catalogue=catalogue,
        rollout=rollout,
        apps=apps,
        demands=rollout.demands if pods else None,
        provider_keys=dict(view.provider_key for view in models if view.provider_key),
        source_keys=secret_files(_loaders(models, observed)),
        kept_keys=kept,
    )


def _loaders(models: tuple[ModelView, ...], observed: Observed) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
    """The Secrets of all sources. Of a model that is not accepted now, what runs may start again and needs its own."""
    return needs((view.parsed.resource for view in models if view.parsed.resource is not None), observed).secrets


def _models_url(observed: Observed, settings: Settings) -> str:
    """A Ray that doesn't answer now still has the port that was published."""
    if settings.models_url:
        return settings.models_url
    if observed.ray is None and observed.published is not None:
        for entry in observed.published.models:
            if entry.target.internal:
                return entry.target.url.partition(MODEL_ROUTE_PREFIX)[0]
    port = observed.ray.http_port if observed.ray is not None else _SERVE_PORT
    return f"http://127.0.0.1:{port}"


def _catalogue(
    views: Views, apps: Mapping[str, AppView], observed: Observed, settings: Settings
) -> tuple[Catalogue | None, int]:
    published = observed.published
    if published is None:
        return None, 0
    models = [_with_state(view.entry, apps.get(view.app) if view.app else None) for view in views.models if view.entry]
    plans = [view.entry for view in views.plans if view.entry]
    keys = [entry for view in views.keys for entry in view.entries]
    kept, guarded = _kept_keys(views, observed, settings)
    keys += kept
    if not observed.complete:  # an object that isn't listed yet is not a deleted one
        models += _absent_models(published.models, views)
        plans += _absent_plans(published.plans, views)
    return Catalogue(models=tuple(models), plans=tuple(plans), keys=tuple(keys)), guarded


def _with_state(entry: ModelEntry, app: AppView | None) -> ModelEntry:
    state, message = (app.state, app.message) if app is not None else ("Ready", "")
    if entry.state == state and entry.state_message == message:
        return entry
    return entry.model_copy(update={"state": state, "state_message": message})


def _kept_keys(views: Views, observed: Observed, settings: Settings) -> tuple[list[KeyEntry], int]:
    """Published keys whose ApiKey is not there, but which stay. The second number counts those that only the guard
    keeps: more than half of all keys gone while nobody watched looks like a mistake, not like a wish."""
    assert observed.published is not None  # noqa: S101 - the caller has looked
    present = {view.parsed.raw.uid for view in views.keys}
    absent = [entry for entry in observed.published.keys if entry.uid not in present]
    if not observed.complete:
        return absent, 0
    unseen = [entry for entry in absent if entry.uid not in observed.seen_keys]
    too_many = len(unseen) >= _GUARD_FROM and 2 * len(unseen) > len(observed.published.keys)
    if too_many and not settings.allow_mass_revocation:
        return unseen, len(unseen)
    return [], 0


def _absent_models(published: tuple[ModelEntry, ...], views: Views) -> list[ModelEntry]:
    present = {view.parsed.full_name for view in views.models}
    ids = {view.model_id for view in views.models}
    return [entry for entry in published if entry.name not in present and entry.model_id not in ids]


def _absent_plans(published: tuple[PlanEntry, ...], views: Views) -> list[PlanEntry]:
    present = {view.parsed.full_name for view in views.plans}
    return [entry for entry in published if entry.name not in present]
