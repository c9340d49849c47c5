"""What should exist, from what was observed: the builders in their order. Called by `reconcile`."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tollway_operator.builders import applications
from tollway_operator.builders.api_keys import build_keys
from tollway_operator.builders.applications import App
from tollway_operator.builders.identity import assign, claim
from tollway_operator.builders.models import build_models, by_base
from tollway_operator.builders.plans import build_plans
from tollway_operator.builders.pools import Demand
from tollway_operator.builders.rollout import Rollout, roll_out
from tollway_operator.builders.sources import needs, secret_files
from tollway_operator.builders.states import AppView, app_view
from tollway_operator.builders.views import KeyView, ModelView, Views, uid_of
from tollway_operator.memo import Memo
from tollway_operator.observed import Observed
from tollway_operator.resources import ModelDeployment
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


def build(observed: Observed, settings: Settings, memo: Memo | None = None) -> Desired:
    """`memo`: what earlier calls worked out. It changes how long this takes, never what it answers."""
    memo = memo or Memo()
    settings = memo.once(_with_url, settings, _models_url(observed, settings))
    ids = memo.once(assign, tuple(memo.each(claim, [parsed.raw.uid for parsed in observed.models], observed.models)))
    models = build_models(observed, ids, settings, memo)
    plans = build_plans(observed, ids, models, settings, memo)
    keys = build_keys(observed, ids, plans, settings, memo)
    views = Views(models, plans, keys)
    apps = _app_views(models, observed, memo)
    wanted = [memo.once(applications.gateway, settings), *_applications(models, settings, memo)]
    catalogue, kept = _catalogue(views, apps, observed, settings, memo)
    rollout = roll_out(wanted, observed, memo)
    pods = settings.pods is not None and observed.complete
    return Desired(
        views=views,
        catalogue=catalogue,
        rollout=rollout,
        apps=apps,
        demands=rollout.demands if pods else None,
        provider_keys=dict(view.provider_key for view in models if view.provider_key),
        source_keys=secret_files(needs(memo.once(_loading, models), observed.secrets).secrets),
        kept_keys=kept,
    )


def _with_url(settings: Settings, models_url: str) -> Settings:
    return replace(settings, models_url=models_url)


def _app_views(models: tuple[ModelView, ...], observed: Observed, memo: Memo) -> Mapping[str, AppView]:
    """By application; an adapter's base is the one whose state counts."""
    published = observed.published.models if observed.published else ()
    before = {entry.name: entry.state for entry in published}
    states = {view.app: before.get(view.parsed.full_name) for view in models if view.app}
    there = observed.ray.apps if observed.ray is not None else {}
    answers = observed.ray is not None
    return dict(
        zip(
            states,
            memo.each(app_view, states, [there.get(name) for name in states], states.values(), common=(answers,)),
            strict=True,
        )
    )


def _applications(models: tuple[ModelView, ...], settings: Settings, memo: Memo) -> list[App]:
    adapters = by_base(models)
    found = memo.each(
        applications.model,
        map(uid_of, models),
        models,
        [tuple(adapters.get(view.parsed.full_name, ())) for view in models],
        common=(settings,),
    )
    return [app for app in found if app is not None]


def _loading(models: tuple[ModelView, ...]) -> tuple[ModelDeployment, ...]:
    """Whose loaders read a Secret. Of a model that is not accepted now, what runs may start again and needs its own."""
    resources = [view.parsed.resource for view in models if view.parsed.resource is not None]
    return tuple(resource for resource in resources if resource.spec.source and resource.spec.source.secret_ref)


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
    views: Views, apps: Mapping[str, AppView], observed: Observed, settings: Settings, memo: Memo
) -> tuple[Catalogue | None, int]:
    published = observed.published
    if published is None:
        return None, 0
    offered = [view for view in views.models if view.entry]
    models = memo.each(
        _with_state,
        map(uid_of, offered),
        [view.entry for view in offered],
        [apps.get(view.app) if view.app else None for view in offered],
    )
    plans = tuple(view.entry for view in views.plans if view.entry)
    kept, guarded = _kept_keys(memo.once(_absent_keys, views.keys, published.keys), observed, settings)
    keys = (*memo.once(_key_entries, views.keys), *kept)
    if not observed.complete:  # an object that isn't listed yet is not a deleted one
        models = (*models, *_absent_models(published.models, views))
        plans = (*plans, *_absent_plans(published.plans, views))
    return memo.once(_whole, models, plans, keys), guarded


def _whole(models: tuple[ModelEntry, ...], plans: tuple[PlanEntry, ...], keys: tuple[KeyEntry, ...]) -> Catalogue:
    return Catalogue(models=models, plans=plans, keys=keys)


def _key_entries(keys: tuple[KeyView, ...]) -> tuple[KeyEntry, ...]:
    return tuple(entry for view in keys for entry in view.entries)


def _with_state(entry: ModelEntry, app: AppView | None) -> ModelEntry:
    state, message = (app.state, app.message) if app is not None else ("Ready", "")
    if entry.state == state and entry.state_message == message:
        return entry
    return entry.model_copy(update={"state": state, "state_message": message})


def _absent_keys(keys: tuple[KeyView, ...], published: tuple[KeyEntry, ...]) -> tuple[KeyEntry, ...]:
    """Published ones whose ApiKey is not there."""
    present = {*map(uid_of, keys)}
    return tuple(entry for entry in published if entry.uid not in present)


def _kept_keys(
    absent: tuple[KeyEntry, ...], observed: Observed, settings: Settings
) -> tuple[tuple[KeyEntry, ...], int]:
    """Those that stay nevertheless. The second number counts those that only the guard
    keeps: more than half of all keys gone while nobody watched looks like a mistake, not like a wish."""
    assert observed.published is not None  # noqa: S101 - the caller has looked
    if not observed.complete:
        return absent, 0
    unseen = tuple(entry for entry in absent if entry.uid not in observed.seen_keys)
    too_many = len(unseen) >= _GUARD_FROM and 2 * len(unseen) > len(observed.published.keys)
    if too_many and not settings.allow_mass_revocation:
        return unseen, len(unseen)
    return (), 0


def _absent_models(published: tuple[ModelEntry, ...], views: Views) -> list[ModelEntry]:
    present = {view.parsed.full_name for view in views.models}
    ids = {view.model_id for view in views.models}
    return [entry for entry in published if entry.name not in present and entry.model_id not in ids]


def _absent_plans(published: tuple[PlanEntry, ...], views: Views) -> list[PlanEntry]:
    present = {view.parsed.full_name for view in views.plans}
    return [entry for entry in published if entry.name not in present]
