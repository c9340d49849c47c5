"""Names that the operator puts into a Serve config and the applications' code must use in turn.

A Serve config overrides a deployment's options by the deployment's name: an unknown one fails the application.
"""

GATEWAY_APP = "gateway"
GATEWAY_IMPORT_PATH = "tollway_serving.gateway.serve_app:build"
GATEWAY_DEPLOYMENT = "gateway"
"""`@serve.deployment(name=...)` of the gateway's only deployment."""

EDGE_ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "tollway_serving.gateway.edge:middlewares"}
"""For every process of Serve: what stands before its own handling of requests."""

MODEL_DEPLOYMENT = "model"
"""`@serve.deployment(name=...)` of every engine's ingress (and, for engines of ours, only) deployment."""

MODEL_APP_PREFIX = "model-"
MODEL_ROUTE_PREFIX = "/_models/"


def model_app(namespace: str, name: str) -> str:
    """The application of a ModelDeployment."""
    return f"{MODEL_APP_PREFIX}{namespace}.{name}"


def model_route(namespace: str, name: str) -> str:
    """The route prefix of a model's application, without a slash at its end."""
    return f"{MODEL_ROUTE_PREFIX}{namespace}.{name}"
