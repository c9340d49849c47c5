"""Every condition type and reason that a status can have, with its meaning and what to do about it.

The checks take their reasons from here, so that none is written that `docs/conditions.md` (made from this file by
hack/generate) doesn't explain. In each class the good reason comes first.
"""

from enum import StrEnum
from typing import Literal, Self

from tollway_operator.ports import Kind

ConditionStatus = Literal["True", "False"]


class Reason(StrEnum):
    """Base: a member is its own text, with the condition's `status`, its `meaning` and `remedy` (what to do).
    A subclass's docstring is the question that its condition answers."""

    status: ConditionStatus
    meaning: str
    remedy: str

    def __new__(cls, value: str, status: ConditionStatus, meaning: str, remedy: str = "") -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.status = status
        member.meaning = meaning
        member.remedy = remedy
        return member


class ModelAccepted(Reason):
    """Can the object be carried out as it is written?"""

    ACCEPTED = "Accepted", "True", "The object is sound and its id is its own."
    DUPLICATE_MODEL_ID = (
        "DuplicateModelId",
        "False",
        "An older ModelDeployment has this model id.",
        "Set another modelId, or delete the older object.",
    )
    UNKNOWN_ENGINE = (
        "UnknownEngine",
        "False",
        "This version has no engine of that name.",
        "Write an engine that the message lists, or upgrade the operator.",
    )
    INVALID_ARGS = (
        "InvalidArgs",
        "False",
        "The engine doesn't take these args, this source or these limits.",
        "Change what the message names.",
    )
    DOES_NOT_FIT = (
        "DoesNotFit",
        "False",
        "The model needs more memory than its pods have.",
        "Use more or larger GPUs, a smaller context or a quantised model.",
    )
    SECRET_NOT_FOUND = (
        "SecretNotFound",
        "False",
        "A Secret that the object names, or its entry, is missing.",
        "Make the Secret in the object's own namespace.",
    )
    UNSUPPORTED_FIELD = (
        "UnsupportedField",
        "False",
        "The object has a field that this operator doesn't know or doesn't carry out yet. The last published version "
        "goes on serving.",
        "Upgrade the operator, or remove the field.",
    )


class ModelScheduled(Reason):
    """Is there a place for its pods?"""

    SCHEDULED = "Scheduled", "True", "All wanted replicas have a place."
    NOT_NEEDED = "NotNeeded", "True", "Nothing has to be placed: the model is remote, or asleep."
    NO_SUCH_ACCELERATOR = (
        "NoSuchAccelerator",
        "False",
        "No node of the cluster, nor one that it could add, has this GPU.",
        "Write an accelerator that the message lists, or add such nodes.",
    )
    WAITING_FOR_NODE = (
        "WaitingForNode",
        "False",
        "A node is being added, or a neighbour must go first.",
        "Wait, or make room; the message says for how long already.",
    )
    QUOTA_EXCEEDED = (
        "QuotaExceeded",
        "False",
        "The namespace's ResourceQuota leaves no room.",
        "Raise the quota or use fewer replicas.",
    )


class ModelReady(Reason):
    """Does the model answer?"""

    READY = "Ready", "True", "At least one replica answers."
    ASLEEP = "Asleep", "True", "No replica runs; the next call starts one."
    NOT_ACCEPTED = "NotAccepted", "False", "See the condition Accepted.", "Correct the object."
    STARTING = "Starting", "False", "The first replica is starting.", "Wait; the message says for how long already."
    IMAGE_PULL_FAILED = (
        "ImagePullFailed",
        "False",
        "The container image can't be pulled.",
        "Check engine.image and the registry's credentials.",
    )
    SOURCE_FAILED = (
        "SourceFailed",
        "False",
        "The weights can't be loaded.",
        "Check source.uri and the Secret of source.secretRef.",
    )
    ENGINE_CRASHED = (
        "EngineCrashed",
        "False",
        "The engine ended; the message has its last lines.",
        "Correct what its lines complain about.",
    )
    UNREACHABLE = (
        "Unreachable",
        "False",
        "Ray, or the remote provider, does not answer.",
        "Check that the Ray cluster is up, or remote.url.",
    )


class ModelDegraded(Reason):
    """Does it serve worse than written?"""

    AS_EXPECTED = "AsExpected", "False", "What serves, if anything does, is as written."
    FEWER_REPLICAS = (
        "FewerReplicas",
        "True",
        "Fewer replicas answer than are wanted.",
        "See the conditions Scheduled and Progressing.",
    )
    ROLLED_BACK = (
        "RolledBack",
        "True",
        "The written version didn't come up; the last good one serves.",
        "Correct the object; the message says why the new version failed.",
    )
    FALLBACK_NOT_USABLE = (
        "FallbackNotUsable",
        "True",
        "A model in fallbacks doesn't exist or doesn't allow this namespace.",
        "Correct fallbacks, or allow this namespace in the other model's allowedNamespaces.",
    )
    ALIAS_TAKEN = (
        "AliasTaken",
        "True",
        "An alias means another model: as its modelId, or as an alias of an older object.",
        "Remove the alias.",
    )


class ModelProgressing(Reason):
    """Is it changing?"""

    UP_TO_DATE = "UpToDate", "False", "The written version serves and nothing is changing."
    DEPLOYING = "Deploying", "True", "The written version is starting."
    SCALING = "Scaling", "True", "Replicas are being added or removed."
    DRAINING = "Draining", "True", "Requests of the old version are being finished."
    ROLLING_BACK = "RollingBack", "True", "The written version failed; the last good one is coming back."
    NO_ROOM = (
        "NoRoom",
        "True",
        "There is no room to start the new version beside the old one, which goes on serving.",
        "Make room, or set rollout: Replace, which ends the old version first.",
    )
    PLATFORM_UPGRADE = (
        "PlatformUpgrade",
        "True",
        "A second Ray cluster is coming up; it takes over when it serves all that the first one serves.",
    )
    ON_HOLD = (
        "OnHold",
        "False",
        "The written version is not being started.",
        "See the conditions Accepted and Scheduled.",
    )
    FAILED = (
        "Failed",
        "False",
        "The written version didn't come up.",
        "Correct the object: Degraded, or Ready, says why. Where nothing else serves, it is tried again after a pause.",
    )


class PlanResolvedRefs(Reason):
    """Are the models that it names there?"""

    RESOLVED = "Resolved", "True", "Every model that the plan names is there."
    MODEL_NOT_FOUND = (
        "ModelNotFound",
        "False",
        "A model that the plan names doesn't exist; the others count.",
        "Correct the id, or make the model.",
    )
    NOT_PERMITTED = (
        "NotPermitted",
        "False",
        "A model that the plan names is in a namespace that doesn't allow this one; the others count.",
        "Add this namespace to the model's allowedNamespaces.",
    )


class PlanReady(Reason):
    """Do the gateways know it?"""

    PUBLISHED = "Published", "True", "Every gateway uses this version."
    LEDGER_UNREACHABLE = (
        "LedgerUnreachable",
        "False",
        "The ledger's database doesn't answer. Gateways keep the last published version.",
        "Check the database and its URL.",
    )
    UNSUPPORTED_FIELD = (
        "UnsupportedField",
        "False",
        "The plan has a field that this operator doesn't know. The last published version stays.",
        "Upgrade the operator, or remove the field.",
    )


class KeyAccepted(Reason):
    """Can the object be carried out as it is written?"""

    ACCEPTED = "Accepted", "True", "The object is sound and its plan allows it."
    PLAN_NOT_FOUND = "PlanNotFound", "False", "There is no such Plan.", "Correct planRef, or make the Plan."
    NOT_PERMITTED = (
        "NotPermitted",
        "False",
        "The Plan is in a namespace that doesn't allow this one.",
        "Add this namespace to the Plan's allowedNamespaces.",
    )
    SECRET_NOT_FOUND = (
        "SecretNotFound",
        "False",
        "The Secret of secretRef, or its entry, is missing.",
        "Make the Secret in the object's own namespace.",
    )
    SECRET_NOT_OURS = (
        "SecretNotOurs",
        "False",
        "A Secret of this name exists and isn't this ApiKey's.",
        "Set another secretName, or use the Secret's key with secretRef.",
    )
    WEAK_KEY = (
        "WeakKey",
        "False",
        "The key in the Secret has fewer than 20 characters.",
        "Put a longer random key into the Secret.",
    )
    DUPLICATE_KEY = (
        "DuplicateKey",
        "False",
        "An older ApiKey has the same key.",
        "Put another key into the Secret, or delete one of the two.",
    )
    UNSUPPORTED_FIELD = (
        "UnsupportedField",
        "False",
        "The object has a field that this operator doesn't know. The last published version stays.",
        "Upgrade the operator, or remove the field.",
    )


class KeyReady(Reason):
    """Does a call with this key get through?"""

    ACTIVE = "Active", "True", "Every gateway takes this key."
    NOT_ACCEPTED = "NotAccepted", "False", "See the condition Accepted.", "Correct the object."
    SUSPENDED = "Suspended", "False", "state is Suspended.", "Set state: Active."
    EXPIRED = "Expired", "False", "expiresAt has passed.", "Set a later time, or make another key."
    LEDGER_UNREACHABLE = (
        "LedgerUnreachable",
        "False",
        "The ledger's database doesn't answer. Gateways keep the last published version.",
        "Check the database and its URL.",
    )


class KeyNearLimit(Reason):
    """Will calls soon be refused?"""

    WITHIN_LIMITS = "WithinLimits", "False", "Nothing is nearly used up."
    CREDITS_LOW = (
        "CreditsLow",
        "True",
        "The account's credits are below the plan's lowWatermark.",
        "Grant credits, or wait for the next month.",
    )
    QUOTA_LOW = (
        "QuotaLow",
        "True",
        "Less than a tenth of a quota is left.",
        "Wait for its next period, or change the plan.",
    )
    TRIAL_ENDING = "TrialEnding", "True", "The plan's trial is nearly over.", "Change the plan."
    USED_UP = (
        "UsedUp",
        "True",
        "Credits, a quota or the trial are used up: calls are refused.",
        "Grant credits, or change the plan.",
    )


CONDITIONS: dict[Kind, dict[str, type[Reason]]] = {
    "ModelDeployment": {
        "Accepted": ModelAccepted,
        "Scheduled": ModelScheduled,
        "Ready": ModelReady,
        "Degraded": ModelDegraded,
        "Progressing": ModelProgressing,
    },
    "Plan": {"ResolvedRefs": PlanResolvedRefs, "Ready": PlanReady},
    "ApiKey": {"Accepted": KeyAccepted, "Ready": KeyReady, "NearLimit": KeyNearLimit},
}
"""By kind and condition type."""


def duplicate_model_id(owner: str) -> str:
    """The message of DuplicateModelId; `owner` is namespace/name."""
    return f"belongs to {owner} (older); set another modelId"


def markdown() -> str:
    """docs/conditions.md."""
    lines = [
        "<!-- Made by hack/generate from operator/tollway_operator/resources/conditions.py: don't edit. -->",
        "# Conditions",
        "",
        "What `kubectl describe` and `tollway up` say of an object. `kubectl wait --for=condition=Ready` works on all "
        "three kinds.",
    ]
    for kind, types in CONDITIONS.items():
        lines += ["", f"## {kind}"]
        for type_, reasons in types.items():
            lines += ["", f"### {type_}", "", str(reasons.__doc__), ""]
            lines += ["| status | reason | meaning | what to do |", "|---|---|---|---|"]
            lines += [
                f"| {reason.status} | {reason.value} | {reason.meaning} | {reason.remedy or '–'} |"
                for reason in reasons
            ]
    return "\n".join(lines) + "\n"
