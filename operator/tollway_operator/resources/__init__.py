"""The three resources of tollway.dev/v1alpha1 as pydantic models: the one source of the CRDs and of validation.

Imported by every part of the operator and the command line; imports no Kubernetes, Kopf, Ray or SQL.
"""

from tollway_operator.resources.api_key import ApiKey, ApiKeySpec
from tollway_operator.resources.common import API_VERSION, GROUP, VERSION, Metadata
from tollway_operator.resources.model_deployment import ModelDeployment, ModelDeploymentSpec
from tollway_operator.resources.plan import Plan, PlanSpec, Quota
from tollway_operator.resources.validate import (
    AnyResource,
    FieldError,
    Invalid,
    check_update,
    parse,
    spec_of,
    validate,
)

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "AnyResource",
    "ApiKey",
    "ApiKeySpec",
    "FieldError",
    "Invalid",
    "Metadata",
    "ModelDeployment",
    "ModelDeploymentSpec",
    "Plan",
    "PlanSpec",
    "Quota",
    "check_update",
    "parse",
    "spec_of",
    "validate",
]
