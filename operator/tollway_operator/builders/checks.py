"""What keeps a ModelDeployment from being accepted: named checks, in their order. Called by `models`."""

from collections.abc import Iterable, Mapping

from tollway_operator.builders.memory import fit
from tollway_operator.builders.sources import Secrets, secret_problem, wrong_source
from tollway_operator.observed import Problem
from tollway_operator.resources import ModelDeployment
from tollway_operator.settings import Settings
from tollway_serving.contract.catalogue import Capability
from tollway_serving.contract.engines import ENGINES, EngineFacts


def problem(
    resource: ModelDeployment,
    facts: EngineFacts | None,
    base: ModelDeployment | None,
    secrets: Secrets,
    gpu_mib: Mapping[str, int],
    settings: Settings,
) -> Problem | None:
    """The first thing that is wrong. `base` is the model that an adapter runs in; `gpu_mib` is a GPU's memory by
    accelerator, as nodes say it."""
    spec = resource.spec
    if facts is None:
        known = ", ".join(sorted(ENGINES))
        return Problem("UnknownEngine", f"spec.engine.name: {spec.engine.name} is none of {known}")
    wrong = (
        _wrong_args(spec.engine.args, facts)
        or _missing_args(resource, facts)
        or wrong_source(resource, facts, settings)
        or _wrong_endpoints(resource, facts)
        or _wrong_capabilities(resource, facts, base)
        or _wrong_context(resource, facts, base)
        or (_wrong_resources(resource, facts, settings) if base is None else None)
    )
    if wrong:
        return Problem("InvalidArgs", wrong)
    if spec.remote is not None and spec.remote.secret_ref is not None:
        reference = spec.remote.secret_ref
        secret = secrets.get((resource.namespace, reference.name))
        if secret is None or reference.key not in secret.values:
            place = f"Secret {resource.namespace}/{reference.name}"
            return Problem("SecretNotFound", f"spec.remote.secretRef: there is no entry {reference.key} in {place}")
    missing = secret_problem(resource, secrets)
    if missing is not None:
        return missing
    return fits(resource, facts, gpu_mib, settings)[0] if base is None else None


def fits(
    resource: ModelDeployment, facts: EngineFacts, gpu_mib: Mapping[str, int], settings: Settings
) -> tuple[Problem | None, str]:
    """Why its GPUs' memory is not enough, and a note if nobody can say. On one machine resources don't count."""
    if not facts.workers or settings.embedded:
        return None, ""
    return fit(resource, context_tokens(resource, facts), gpu_mib)


def context_tokens(resource: ModelDeployment, facts: EngineFacts, base: ModelDeployment | None = None) -> int:
    """An adapter's is its base's unless it wants less."""
    if resource.spec.limits.context_tokens:
        return resource.spec.limits.context_tokens
    if base is not None:
        return context_tokens(base, facts)
    written = resource.spec.engine.args.get(facts.context_arg) if facts.context_arg else None
    return written if isinstance(written, int) else facts.context_tokens


def capabilities(
    resource: ModelDeployment, facts: EngineFacts, base: ModelDeployment | None = None
) -> tuple[Capability, ...]:
    if resource.spec.capabilities is not None:
        return resource.spec.capabilities
    if base is not None:
        return capabilities(base, facts)
    args = resource.spec.engine.args
    return (*facts.capabilities, *(item for item, arg in facts.capability_args.items() if arg in args))


def _wrong_args(args: Mapping[str, int | str], facts: EngineFacts) -> str | None:
    for name, value in args.items():
        arg = facts.args.get(name)
        path = f"spec.engine.args.{name}"
        if name in facts.owned_args:
            return f"{path}: {facts.owned_args[name]} decides this; remove it"
        if arg is None:
            if facts.free_args:
                continue
            return f"{path}: not an argument of this engine; it has {listed(facts.args) or 'none'}"
        wrong = arg.wrong(value)
        if wrong:
            return f"{path}: {wrong}"
    return None


def _missing_args(resource: ModelDeployment, facts: EngineFacts) -> str | None:
    for name in facts.needs_args:
        if name not in resource.spec.engine.args:
            return f"spec.engine.args.{name}: missing; {facts.args[name].help}"
    return None


def _wrong_endpoints(resource: ModelDeployment, facts: EngineFacts) -> str | None:
    possible = (*facts.endpoints, *facts.more_endpoints)
    foreign = set(resource.spec.endpoints or ()) - set(possible)
    if not foreign:
        return None
    return (
        f"spec.endpoints: engine {resource.spec.engine.name} doesn't serve {listed(foreign)}, only {listed(possible)}"
    )


def _wrong_capabilities(resource: ModelDeployment, facts: EngineFacts, base: ModelDeployment | None) -> str | None:
    wanted = set(resource.spec.capabilities or ())
    foreign = wanted - {*facts.capabilities, *facts.more_capabilities}
    if foreign:
        return f"spec.capabilities: engine {resource.spec.engine.name} doesn't have {listed(foreign)}"
    for capability, arg in facts.capability_args.items():
        if capability in wanted and arg not in (base or resource).spec.engine.args:
            return f"spec.capabilities: {capability} needs spec.engine.args.{arg}: {facts.args[arg].help}"
    return None


def _wrong_context(resource: ModelDeployment, facts: EngineFacts, base: ModelDeployment | None) -> str | None:
    limit = resource.spec.limits.context_tokens
    if limit is None:
        return None
    if base is not None:
        most = context_tokens(base, facts)
        return f"spec.limits.contextTokens: its base has {most}; write no more" if limit > most else None
    written = resource.spec.engine.args.get(facts.context_arg) if facts.context_arg else None
    if isinstance(written, int) and written < limit:
        return f"spec.limits.contextTokens: {limit}, but spec.engine.args.{facts.context_arg} is {written}; write one"
    return None


def _wrong_resources(resource: ModelDeployment, facts: EngineFacts, settings: Settings) -> str | None:
    pod = resource.spec.pod
    if facts.workers and settings.pods is not None and not pod.gpus and resource.spec.engine.image is None:
        return f"spec.resources.gpus: engine {resource.spec.engine.name} needs at least 1"
    if pod.pods > 1 and not facts.workers:
        return f"spec.resources.pods: engine {resource.spec.engine.name} can't be split over pods; remove it"
    if pod.pods > 1 and not pod.gpus:
        return "spec.resources.pods: only GPUs can be split over pods; write resources.gpus, too"
    return None


def listed(items: Iterable[str]) -> str:
    return ", ".join(sorted(items))
