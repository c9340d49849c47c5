"""What every engine of ours needs to be a Ray Serve application; each engine's `build` calls `application`."""

import os
from pathlib import Path
from typing import Any

from ray import serve

from tollway_serving.contract.applications import MODEL_DEPLOYMENT
from tollway_serving.engines.protocol import EngineArgs


def token_file() -> Path:
    return Path(os.environ.get("TOLLWAY_SECRETS_DIR", "/etc/tollway/secrets")) / "internal-token"


def application(replica: type, args: dict[str, Any]) -> serve.Application:
    """The Serve application of one ModelDeployment, whose replicas are made of `args`, EngineArgs' fields."""
    settings = EngineArgs(**args)
    deployment: serve.Deployment = serve.deployment(
        name=MODEL_DEPLOYMENT,
        max_ongoing_requests=settings.slots,
        max_queued_requests=settings.queued_requests,
        # Little, so that two cores hold a third model or a surge: an engine's threads share the cores by themselves.
        ray_actor_options={"num_cpus": 0.1},
    )(replica)
    made: serve.Application = deployment.bind(args)
    return made
