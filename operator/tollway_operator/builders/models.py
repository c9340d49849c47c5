"""ModelDeployments: which are accepted, and their catalogue entries. Called by `desired`."""

from collections.abc import Iterable, Mapping

from tollway_operator.builders.identity import Ids, model_id, permits
from tollway_operator.builders.pools import pool_of
from tollway_operator.builders.support import ignored, unsupported
from tollway_operator.builders.views import ModelView
from tollway_operator.observed import Observed, Parsed, Problem
from tollway_operator.resources import ModelDeployment
from tollway_operator.resources.common import SecretRef
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


def build_models(observed: Observed, ids: Ids, settings: Settings) -> tuple[ModelView, ...]:
    """One view an object, oldest first. The entries' `state` is filled in by `states` afterwards."""
    published = {entry.name: entry for entry in observed.published.models} if observed.published else {}
    by_name = {parsed.full_name: parsed for parsed in observed.models}
    return tuple(
        _view(parsed, observed, ids, by_name, published.get(parsed.full_name), settings) for parsed in observed.models
    )


def _view(
    parsed: Parsed[ModelDeployment],
    observed: Observed,
    ids: Ids,
    by_name: Mapping[str, Parsed[ModelDeployment]],
    published: ModelEntry | None,
    settings: Settings,
) -> ModelView:
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
    app = model_app(*name) if facts is None or facts.import_path is not None else None
    problem = unsupported(
        "ModelDeployment", resource, embedded=settings.embedded, pods=settings.pods is not None
    ) or _problem(resource, facts, observed)
    if problem is not None or facts is None:
        return ModelView(parsed, own, refused=problem, entry=published, app=app)
    aliases = tuple(alias for alias in resource.spec.aliases if ids.owner(alias) == parsed.full_name and alias != own)
    fallbacks, lost = _fallbacks(resource, facts, ids, by_name)
    return ModelView(
        parsed,
        own,
        unscheduled=_unscheduled(resource, settings),
        facts=facts,
        app=app,
        pool=pool_of(resource, settings.pods) if app is not None and settings.pods is not None else None,
        entry=_entry(resource, facts, aliases, fallbacks, settings),
        aliases_lost=tuple(
            Problem("AliasTaken", f"alias {alias} belongs to {ids.owner(alias)}")
            for alias in resource.spec.aliases
            if ids.owner(alias) != parsed.full_name
        ),
        fallbacks_lost=lost,
        ignored=ignored(resource) if settings.embedded else (),
        provider_key=_provider_key(resource),
    )


def _problem(resource: ModelDeployment, facts: EngineFacts | None, observed: Observed) -> Problem | None:
    """The first thing that keeps the object from being accepted."""
    spec = resource.spec
    if facts is None:
        known = ", ".join(sorted(ENGINES))
        return Problem("UnknownEngine", f"spec.engine.name: {spec.engine.name} is none of {known}")
    wrong = _wrong_args(spec.engine.args, facts) or _wrong_source(resource, facts)
    if wrong:
        return Problem("InvalidArgs", wrong)
    possible = (*facts.endpoints, *facts.more_endpoints)
    foreign_endpoints = set(spec.endpoints or ()) - set(possible)
    if foreign_endpoints:
        said = f"engine {spec.engine.name} doesn't serve {_list(foreign_endpoints)}, only {_list(possible)}"
        return Problem("InvalidArgs", f"spec.endpoints: {said}")
    foreign_capabilities = set(spec.capabilities or ()) - {*facts.capabilities, *facts.more_capabilities}
    if foreign_capabilities:
        said = f"engine {spec.engine.name} doesn't have {_list(foreign_capabilities)}"
        return Problem("InvalidArgs", f"spec.capabilities: {said}")
    if spec.remote is not None and spec.remote.secret_ref is not None:
        reference = spec.remote.secret_ref
        secret = observed.secrets.get((resource.namespace, reference.name))
        if secret is None or reference.key not in secret.values:
            return _secret_not_found("spec.remote.secretRef", resource.namespace, reference)
    return None


def _wrong_args(args: Mapping[str, int | str], facts: EngineFacts) -> str | None:
    for name, value in args.items():
        arg = facts.args.get(name)
        path = f"spec.engine.args.{name}"
        if arg is None:
            if facts.free_args:
                continue
            return f"{path}: not an argument of this engine; it has {_list(facts.args) or 'none'}"
        if arg.kind == "integer":
            if not isinstance(value, int):
                return f"{path}: write a whole number"
            if not arg.minimum <= value <= arg.maximum:
                return f"{path}: write a whole number from {arg.minimum} to {arg.maximum}"
        elif arg.kind == "choice" and str(value) not in arg.choices:
            return f"{path}: write one of {_list(arg.choices)}"
    return None


def _wrong_source(resource: ModelDeployment, facts: EngineFacts) -> str | None:
    if not facts.sources:
        return None
    schemes = _list(f"{scheme}://" for scheme in facts.sources)
    uri = resource.spec.source.uri if resource.spec.source else None
    if uri is None:
        return f"spec.source.uri: missing; engine {resource.spec.engine.name} loads {schemes}"
    if uri.partition("://")[0] not in facts.sources:
        return f"spec.source.uri: engine {resource.spec.engine.name} loads {schemes}"
    return None


def _unscheduled(resource: ModelDeployment, settings: Settings) -> Problem | None:
    pod = resource.spec.pod
    if settings.embedded or settings.pods is not None or not pod.gpus:  # (pods tell by themselves)
        return None
    if not settings.accelerators:
        return Problem("NoSuchAccelerator", f"it asks for {pod.gpus} GPUs and this Ray cluster has none")
    if pod.accelerator and pod.accelerator not in settings.accelerators:
        there = _list(settings.accelerators)
        return Problem("NoSuchAccelerator", f"{pod.accelerator} is not in this Ray cluster; it has {there}")
    return None


def _fallbacks(
    resource: ModelDeployment, facts: EngineFacts, ids: Ids, by_name: Mapping[str, Parsed[ModelDeployment]]
) -> tuple[tuple[Fallback, ...], tuple[Problem, ...]]:
    usable: list[Fallback] = []
    lost: list[Problem] = []
    for fallback in resource.spec.fallbacks:
        owner = ids.owner(fallback.model_id)
        other = by_name.get(owner) if owner else None
        why = None
        if other is None:
            why = "there is no such model"
        elif other.resource is None:
            why = f"{owner} is not accepted"
        elif not permits(other.raw.namespace, other.resource.spec.allowed_namespaces, resource.namespace):
            why = f"{owner} doesn't list {resource.namespace} in allowedNamespaces"
        elif owner == resource.full_name:
            why = "it is an alias of this model"
        elif not _endpoints(other.resource) & set(resource.spec.endpoints or facts.endpoints):
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
    aliases: tuple[str, ...],
    fallbacks: tuple[Fallback, ...],
    settings: Settings,
) -> ModelEntry:
    spec = resource.spec
    endpoints = spec.endpoints or facts.endpoints
    capabilities = facts.capabilities if spec.capabilities is None else spec.capabilities
    context = spec.limits.context_tokens or facts.context_tokens
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
        capabilities=capabilities,
        parameters=_parameters(facts, capabilities),
        context_tokens=context,
        output_tokens=output,
        default_output_tokens=output,
        inputs_per_call=facts.inputs_per_call,
        token_bound=facts.token_bound,
        target=_target(resource, settings),
        fallbacks=fallbacks,
        timeouts=Timeouts(
            connect_ms=spec.timeouts.connect_ms,
            first_byte_ms=spec.timeouts.first_byte_ms,
            idle_ms=spec.timeouts.idle_ms,
            total_ms=spec.timeouts.total_ms,
        ),
        prices=dict(spec.prices),
        state="Starting" if facts.import_path else "Ready",
        cold_start=spec.scaling.cold_start,
        queued_requests=spec.limits.queued_requests,
    )


_CAPABILITY_PARAMETERS: Mapping[Capability, tuple[str, ...]] = {
    "Tools": ("tools", "tool_choice", "parallel_tool_calls"),
    "StructuredOutput": ("response_format",),
    "Logprobs": ("logprobs", "top_logprobs"),
    "Reasoning": ("reasoning_effort",),
}


def _parameters(facts: EngineFacts, capabilities: tuple[Capability, ...]) -> tuple[str, ...]:
    """The engine's, without those of capabilities that the object takes away."""
    gone = {
        parameter
        for capability, parameters in _CAPABILITY_PARAMETERS.items()
        if capability not in capabilities
        for parameter in parameters
    }
    return tuple(parameter for parameter in facts.parameters if parameter not in gone)


def _target(resource: ModelDeployment, settings: Settings) -> Target:
    remote = resource.spec.remote
    if remote is None:
        url = settings.models_url.rstrip("/") + model_route(resource.namespace, resource.name) + "/v1"
        return Target(url=url, model=resource.model_id)
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


def _secret_not_found(path: str, namespace: str, reference: SecretRef) -> Problem:
    return Problem(
        "SecretNotFound", f"{path}: there is no entry {reference.key} in Secret {namespace}/{reference.name}"
    )


def _format(endpoints: tuple[Endpoint, ...], formats: Mapping[Endpoint, str]) -> str:
    return next((formats[endpoint] for endpoint in endpoints if endpoint in formats), "MODEL_FORMAT_TEXT")


def _list(items: Iterable[str]) -> str:
    return ", ".join(sorted(items))
