"""The gateway as a Ray Serve application: the only file here that imports Ray. Named in the Serve config.

Settings come from the environment and the secrets folder of the node; `args` may override settings that are no secret.
"""

from typing import Any

from ray import serve

from tollway_serving.contract.applications import GATEWAY_DEPLOYMENT
from tollway_serving.gateway import edge, logs
from tollway_serving.gateway.app import Gateway, make_app

_MAX_ONGOING = 2_000  # Serve's default of 5 would queue all others; the gateway bounds itself


@serve.ingress()
class GatewayReplica:
    """One replica; Serve runs the ASGI app's lifespan."""

    def __init__(self, args: dict[str, Any]) -> None:
        logs.configure()
        # Where Serve's own handling comes first (see `edge`), it appends x-request-id to every answer.
        self._gateway = make_app({**args, "request_id_header": False})
        edge.answer_here(self._gateway)

    def __serve_build_asgi_app__(self) -> Gateway:
        return self._gateway


def build(args: dict[str, Any]) -> serve.Application:
    """`args`: fields of Settings. The number of replicas and their resources come from the Serve config."""
    deployment: serve.Deployment = serve.deployment(
        name=GATEWAY_DEPLOYMENT,
        max_ongoing_requests=_MAX_ONGOING,
        ray_actor_options={"num_cpus": 0.1},
        # The gateway writes a better line itself, at a tenth of the cost.
        logging_config={"enable_access_log": False},
    )(GatewayReplica)
    application: serve.Application = deployment.bind(args)
    return application
