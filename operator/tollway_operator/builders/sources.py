"""Models' sources, as far as pods are concerned: which address is sound, which Secrets and claims a pod must have.

Called by `checks`, `models` and `applications`. Nothing is downloaded here: engines do that, in the pods.
"""

from collections.abc import Iterable, Mapping

from tollway_operator.builders.pools import Needs
from tollway_operator.observed import Problem
from tollway_operator.ports import SecretView
from tollway_operator.resources import ModelDeployment
from tollway_operator.settings import Settings
from tollway_serving.contract.engines import EngineFacts
from tollway_serving.contract.sources import LOADER_ENTRIES, SECRET_ENTRIES, SourceUriError, read

Secrets = Mapping[tuple[str, str], SecretView]
"""By namespace and name: those that a model names."""


def named_secrets(resource: ModelDeployment) -> tuple[tuple[str, str], ...]:
    """Namespace and name of every Secret that a model names."""
    spec = resource.spec
    references = (spec.remote.secret_ref if spec.remote else None, spec.source.secret_ref if spec.source else None)
    return tuple((resource.namespace, reference.name) for reference in references if reference is not None)


def wrong_source(resource: ModelDeployment, facts: EngineFacts, settings: Settings) -> str | None:
    uri = resource.spec.source.uri if resource.spec.source else None
    schemes = ", ".join(sorted(f"{scheme}://" for scheme in facts.sources))
    engine = resource.spec.engine.name
    if uri is None:
        if not facts.sources or not facts.needs_source:
            return None
        return f"spec.source.uri: missing; engine {engine} loads {schemes}"
    if uri.partition("://")[0] not in facts.sources:
        return f"spec.source.uri: engine {engine} loads {schemes}" if facts.sources else None
    try:
        source = read(uri)
    except SourceUriError as error:
        return f"spec.source.uri: {error}"
    if source.scheme == "pvc":
        if settings.pods is None:
            return "spec.source.uri: pvc:// needs pods that Tollway makes, with KubeRay"
        if settings.pods.namespace != resource.namespace:
            # A claim of the pods' own namespace: nobody else may have it mounted.
            where = settings.pods.namespace
            return f"spec.source.uri: claims are in the pods' namespace; only a ModelDeployment in {where} can name one"
    if resource.spec.source and resource.spec.source.secret_ref and source.scheme not in SECRET_ENTRIES:
        return f"spec.source.secretRef: {source.scheme}:// needs no Secret; remove it"
    return None


def secret_problem(resource: ModelDeployment, secrets: Secrets) -> Problem | None:
    reference = resource.spec.source.secret_ref if resource.spec.source else None
    if reference is None:
        return None
    place = f"Secret {resource.namespace}/{reference.name}"
    secret = secrets.get((resource.namespace, reference.name))
    if secret is None:
        return Problem("SecretNotFound", f"spec.source.secretRef: there is no {place}")
    if not set(LOADER_ENTRIES) & secret.values.keys():
        return Problem(
            "SecretNotFound",
            f"spec.source.secretRef: {place} has no entry that a loader reads ({_list(LOADER_ENTRIES)})",
        )
    return None


def loader_secret(resource: ModelDeployment) -> str | None:
    """What the files of its Secret begin with: neither a namespace nor a Secret's name can have an underscore."""
    reference = resource.spec.source.secret_ref if resource.spec.source else None
    return f"{resource.namespace}_{reference.name}" if reference else None


def secret_files(secrets: Iterable[tuple[str, str, tuple[str, ...]]]) -> dict[str, tuple[str, str, str]]:
    """By file name: namespace, Secret, entry."""
    return {
        f"{namespace}_{name}_{entry}": (namespace, name, entry)
        for namespace, name, entries in secrets
        for entry in entries
    }


def needs(models: Iterable[ModelDeployment], secrets: Secrets) -> Needs:
    mounted: dict[tuple[str, str], tuple[str, str, tuple[str, ...]]] = {}
    claims = set()
    for model in models:
        source = model.spec.source
        if source is None:
            continue
        if source.secret_ref is not None:
            place = (model.namespace, source.secret_ref.name)
            view = secrets.get(place)
            there: Mapping[str, object] = view.values if view else {}
            mounted[place] = (*place, tuple(sorted(set(LOADER_ENTRIES) & there.keys())))
        if source.uri is not None and source.uri.startswith("pvc://"):
            claims.add(read(source.uri).place)
    return Needs(tuple(mounted[place] for place in sorted(mounted)), tuple(sorted(claims)))


def _list(items: Iterable[str]) -> str:
    return ", ".join(sorted(items))
