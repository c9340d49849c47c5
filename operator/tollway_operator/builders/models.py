"""ModelDeployments: which are accepted, and their catalogue entries. Called by `desired`."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from tollway_operator.builders.checks import capabilities, context_tokens, fits, listed, problem
from tollway_operator.builders.identity import Ids, model_id, permits
from tollway_operator.builders.pools import PodDefaults, pool_of
from tollway_operator.builders.sources import Secrets, named_secrets, needs
from tollway_operator.builders.support import ignored, unsupported
from tollway_operator.builders.views import ModelView
from tollway_operator.memo import Memo
from tollway_operator.observed import Observed, Parsed, Problem
from tollway_operator.resources import ModelDeployment
from tollway_operator.settings import Settings
from tollway_serving.contract.applications import model_app, model_route
from tollway_serving.contract.catalogue import Capability, Endpoint, Fallback, ModelEntry, Target, Timeouts
from tollway_serving.contract.engines import ENGINES, EngineFacts

_OUTPUT_FORMATS: Mapping[Endpoint, str] = {
    "ImageGenerations": "MODEL_FORMAT_IMAGE",
    "ImageEdits": "MODEL_FORMAT_IMAGE",
    "AudioSpeech": "MODEL_FORMAT_AUDIO",
    "VideoGenerations": "MODEL_FORMAT_VIDEO",
    "MusicGenerations": "MODEL_FORMAT_AUDIO",
    "Embeddings": "MODEL_FORMAT_EMBEDDING",
}
_INPUT_FORMATS: Mapping[Endpoint, str] = {
    "AudioTranscriptions": "MODEL_FORMAT_AUDIO",
    "AudioTranslations": "MODEL_FORMAT_AUDIO",
    "ImageEdits": "MODEL_FORMAT_IMAGE",
    "DocumentsAnonymize": "MODEL_FORMAT_DOCUMENT",
    "DocumentsStripMetadata": "MODEL_FORMAT_DOCUMENT",
}


def build_models(observed: Observed, ids: Ids, settings: Settings, memo: Memo) -> tuple[ModelView, ...]:
    """One view an object, oldest first. The entries' `state` is filled in by `states` afterwards."""
    uids = [parsed.raw.uid for parsed in observed.models]
    resources = [parsed.resource for parsed in observed.models]
    published = {entry.name: entry for entry in observed.published.models} if observed.published else {}
    by_name = {parsed.full_name: parsed.resource for parsed in observed.models}
    names = memo.each(_names, uids, observed.models)
    secrets = _some(observed.secrets, memo.once(_places, names))
    views = memo.each(
        _view,
        uids,
        observed.models,
        memo.once(_surroundings, names, ids, by_name, secrets),
        [published.get(parsed.full_name) for parsed in observed.models],
        common=(observed.platform.gpu_mib if observed.platform else {}, settings),
    )
    if settings.pods is None:
        return views
    adapters = by_base(views)
    parts = [
        (resource, *_resources(adapters.get(view.parsed.full_name, ())))
        for resource, view in zip(resources, views, strict=True)
    ]
    mounted = [
        _some(secrets, (place for part in together if part for place in named_secrets(part))) for together in parts
    ]
    return memo.each(_with_pool, uids, views, parts, mounted, common=(settings.pods,))


def by_base(views: Iterable[ModelView]) -> dict[str, list[ModelView]]:
    """Adapters by the full name of the model that they run in."""
    found: dict[str, list[ModelView]] = {}
    for view in views:
        if view.base is not None:
            found.setdefault(view.base, []).append(view)
    return found


@dataclass(frozen=True, slots=True)
class _Names:
    """What an object names beside itself."""

    ids: tuple[str, ...]
    base: str | None
    secrets: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class _Around:
    """What there is of what an object names: models by full name (None: it can't be read) and Secrets."""

    ids: Ids
    others: Mapping[str, ModelDeployment | None]
    secrets: Secrets


def _names(parsed: Parsed[ModelDeployment]) -> _Names:
    own, resource = model_id(parsed), parsed.resource
    if resource is None:
        return _Names((own,), None, ())
    spec = resource.spec
    base = spec.source.adapter_of if spec.source is not None else None
    others = [fallback.model_id for fallback in spec.fallbacks]
    ids = dict.fromkeys((own, *spec.aliases, *others, *((base,) if base is not None else ())))
    return _Names(tuple(ids), base, named_secrets(resource))


def _places(names: tuple[_Names, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(place for each in names for place in each.secrets)


def _surroundings(
    names: tuple[_Names, ...], ids: Ids, by_name: Mapping[str, ModelDeployment | None], secrets: Secrets
) -> tuple[_Around, ...]:
    return tuple(_around(each, ids.of(each.ids), by_name, secrets) for each in names)


def _around(names: _Names, ids: Ids, by_name: Mapping[str, ModelDeployment | None], secrets: Secrets) -> _Around:
    others = {owner: by_name[owner] for owner in ids.owners.values() if owner in by_name}
    places = names.secrets
    if names.base is not None and (base := others.get(ids.owner(names.base) or "")) is not None:
        places = (*places, *named_secrets(base))
    return _Around(ids, others, _some(secrets, places))


def _some(secrets: Secrets, places: Iterable[tuple[str, str]]) -> Secrets:
    return {place: secrets[place] for place in places if place in secrets}


def _resources(views: Iterable[ModelView]) -> tuple[ModelDeployment, ...]:
    return tuple(view.parsed.resource for view in views if view.parsed.resource is not None)


def _with_pool(
    view: ModelView, parts: tuple[ModelDeployment | None, ...], secrets: Secrets, pods: PodDefaults
) -> ModelView:
    """With the pods that it needs. `parts` are the model and its adapters, which have a part in them, too."""
    resource = parts[0]
    if view.app is None or view.base is not None or view.facts is None or resource is None:
        return view
    return replace(view, pool=pool_of(resource, pods, needs((part for part in parts if part is not None), secrets)))


def _view(
    parsed: Parsed[ModelDeployment],
    around: _Around,
    published: ModelEntry | None,
    gpu_mib: Mapping[str, int],
    settings: Settings,
) -> ModelView:
    ids = around.ids
    own = model_id(parsed)
    owner = ids.owner(own)
    if owner != parsed.full_name:
        message = f"modelId {own} belongs to {owner} (older); set another modelId"
        return ModelView(parsed, own, refused=Problem("DuplicateModelId", message))
    name = parsed.raw.namespace, parsed.raw.name
    resource = parsed.resource
    if resource is None:
        kept_app = model_app(*name) if published is None or published.target.internal else None
        return ModelView(parsed, own, refused=parsed.problem, entry=published, app=kept_app)
    facts = ENGINES.get(resource.spec.engine.name)
    base = None
    if resource.spec.source is not None and resource.spec.source.adapter_of is not None:
        base, lacking = _base(resource, around, gpu_mib, settings)
        if base is None:
            return ModelView(parsed, own, refused=lacking, entry=published)
    app = model_app(*name) if facts is None or facts.import_path is not None else None
    if base is not None:
        app = model_app(base.namespace, base.name)
    refused = _unsupported(resource, settings) or problem(resource, facts, base, around.secrets, gpu_mib, settings)
    if refused is not None or facts is None:
        return ModelView(parsed, own, refused=refused, entry=published, app=app)
    _, note = fits(resource, facts, gpu_mib, settings)
    aliases = tuple(alias for alias in resource.spec.aliases if ids.owner(alias) == parsed.full_name and alias != own)
    fallbacks, lost = _fallbacks(resource, facts, ids, around.others)
    return ModelView(
        parsed,
        own,
        unscheduled=_unscheduled(resource, settings),
        facts=facts,
        app=app,
        base=base.full_name if base is not None else None,
        entry=_entry(resource, facts, base, aliases, fallbacks, settings),
        aliases_lost=tuple(
            Problem("AliasTaken", f"alias {alias} belongs to {ids.owner(alias)}")
            for alias in resource.spec.aliases
            if ids.owner(alias) != parsed.full_name
        ),
        fallbacks_lost=lost,
        ignored=ignored(resource) if settings.embedded else (),
        note=note if base is None else "",
        provider_key=_provider_key(resource),
    )


def _unsupported(resource: ModelDeployment, settings: Settings) -> Problem | None:
    return unsupported("ModelDeployment", resource, embedded=settings.embedded, pods=settings.pods is not None)


def _base(
    resource: ModelDeployment, around: _Around, gpu_mib: Mapping[str, int], settings: Settings
) -> tuple[ModelDeployment | None, Problem | None]:
    """The model that an adapter runs in; None with what is wrong about it."""
    assert resource.spec.source is not None  # noqa: S101 - the caller has looked
    wanted = str(resource.spec.source.adapter_of)
    owner = around.ids.owner(wanted)
    base = around.others.get(owner) if owner else None
    if owner not in around.others:
        why = "there is no such model"
    elif base is None:
        why = f"{owner} is not accepted"
    elif not permits(base.namespace, base.spec.allowed_namespaces, resource.namespace):
        why = f"{owner} doesn't list {resource.namespace} in allowedNamespaces"
    elif base.spec.source is not None and base.spec.source.adapter_of is not None:
        why = f"{owner} is an adapter itself; name its base"
    elif base.spec.engine.name != resource.spec.engine.name:
        why = f"{owner} runs in engine {base.spec.engine.name}; write the same engine"
    else:
        facts = ENGINES.get(base.spec.engine.name)
        refused = _unsupported(base, settings) or problem(base, facts, None, around.secrets, gpu_mib, settings)
        if refused is not None:
            why = f"{owner} is not accepted: {refused.message}"
        elif facts is None or not facts.adapters:
            why = f"engine {base.spec.engine.name} takes no adapters"
        else:
            return base, None
    return None, Problem("InvalidArgs", f"spec.source.adapterOf: {wanted}: {why}")


def _unscheduled(resource: ModelDeployment, settings: Settings) -> Problem | None:
    pod = resource.spec.pod
    if settings.embedded or settings.pods is not None or not pod.gpus:  # (pods tell by themselves)
        return None
    if not settings.accelerators:
        return Problem("NoSuchAccelerator", f"it asks for {pod.gpus} GPUs and this Ray cluster has none")
    if pod.accelerator and pod.accelerator not in settings.accelerators:
        there = listed(settings.accelerators)
        return Problem("NoSuchAccelerator", f"{pod.accelerator} is not in this Ray cluster; it has {there}")
    return None


def _fallbacks(
    resource: ModelDeployment, facts: EngineFacts, ids: Ids, others: Mapping[str, ModelDeployment | None]
) -> tuple[tuple[Fallback, ...], tuple[Problem, ...]]:
    usable: list[Fallback] = []
    lost: list[Problem] = []
    for fallback in resource.spec.fallbacks:
        owner = ids.owner(fallback.model_id)
        other = others.get(owner) if owner else None
        why = None
        if owner not in others:
            why = "there is no such model"
        elif other is None:
            why = f"{owner} is not accepted"
        elif not permits(other.namespace, other.spec.allowed_namespaces, resource.namespace):
            why = f"{owner} doesn't list {resource.namespace} in allowedNamespaces"
        elif owner == resource.full_name:
            why = "it is an alias of this model"
        elif not _endpoints(other) & set(resource.spec.endpoints or facts.endpoints):
            why = f"{owner} serves none of this model's endpoints"
        if why:
            lost.append(Problem("FallbackNotUsable", f"fallback {fallback.model_id}: {why}"))
        else:
            usable.append(Fallback(model_id=ids.model_ids[fallback.model_id], when=fallback.when))
    return tuple(usable), tuple(lost)


def _endpoints(resource: ModelDeployment) -> set[Endpoint]:
    facts = ENGINES.get(resource.spec.engine.name)
    return set(resource.spec.endpoints or (facts.endpoints if facts else ()))


def _entry(
    resource: ModelDeployment,
    facts: EngineFacts,
    base: ModelDeployment | None,
    aliases: tuple[str, ...],
    fallbacks: tuple[Fallback, ...],
    settings: Settings,
) -> ModelEntry:
    spec = resource.spec
    endpoints = spec.endpoints or facts.endpoints
    able = capabilities(resource, facts, base)
    context = context_tokens(resource, facts, base)
    output = min(spec.limits.output_tokens or facts.output_tokens, context)
    return ModelEntry(
        model_id=resource.model_id,
        name=resource.full_name,
        aliases=aliases,
        created=resource.metadata.created,
        owned_by=spec.info.owned_by or "tollway",
        licence=spec.info.licence,
        parameters_number=spec.info.parameters,
        input_format=_format(endpoints, _INPUT_FORMATS),
        output_format=_format(endpoints, _OUTPUT_FORMATS),
        endpoints=endpoints,
        capabilities=able,
        parameters=_parameters(facts, able),
        context_tokens=context,
        output_tokens=output,
        default_output_tokens=output,
        inputs_per_call=facts.inputs_per_call,
        token_bound=facts.token_bound,
        target=_target(resource, facts, base, settings),
        fallbacks=fallbacks,
        timeouts=Timeouts(
            connect_ms=spec.timeouts.connect_ms,
            first_byte_ms=spec.timeouts.first_byte_ms,
            idle_ms=spec.timeouts.idle_ms,
            total_ms=spec.timeouts.total_ms,
        ),
        prices=dict(spec.prices),
        state="Starting" if facts.import_path else "Ready",
        cold_start=(base or resource).spec.scaling.cold_start,
        queued_requests=spec.limits.queued_requests,
    )


_CAPABILITY_PARAMETERS: Mapping[Capability, tuple[str, ...]] = {
    "Tools": ("tools", "tool_choice", "parallel_tool_calls"),
    "StructuredOutput": ("response_format",),
    "Logprobs": ("logprobs", "top_logprobs"),
    "Reasoning": ("reasoning_effort",),
}


def _parameters(facts: EngineFacts, able: tuple[Capability, ...]) -> tuple[str, ...]:
    """The engine's, without those of capabilities that the object takes away."""
    gone = {
        parameter
        for capability, parameters in _CAPABILITY_PARAMETERS.items()
        if capability not in able
        for parameter in parameters
    }
    return tuple(parameter for parameter in facts.parameters if parameter not in gone)


def _target(resource: ModelDeployment, facts: EngineFacts, base: ModelDeployment | None, settings: Settings) -> Target:
    remote = resource.spec.remote
    if remote is None:
        runs = base or resource
        url = settings.models_url.rstrip("/") + model_route(runs.namespace, runs.name) + "/v1"
        return Target(url=url, model=resource.model_id, continuous_usage=facts.continuous_usage)
    key = _provider_key(resource)
    return Target(
        url=remote.url.rstrip("/"),
        protocol=remote.protocol,
        model=remote.model or resource.model_id,
        internal=False,
        secret=key[0] if key else None,
        headers={header.name: header.value for header in remote.headers},
        continuous_usage=False,
    )


def _provider_key(resource: ModelDeployment) -> tuple[str, tuple[str, str, str]] | None:
    remote = resource.spec.remote
    if remote is None or remote.secret_ref is None:
        return None
    reference = remote.secret_ref
    where = (resource.namespace, reference.name, reference.key)
    return ".".join(where), where


def _format(endpoints: tuple[Endpoint, ...], formats: Mapping[Endpoint, str]) -> str:
    return next((formats[endpoint] for endpoint in endpoints if endpoint in formats), "MODEL_FORMAT_TEXT")
