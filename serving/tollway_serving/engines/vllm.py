"""The `vllm` engine: vLLM in a replica of `ray.serve.llm`, whose own HTTP application answers behind our token.

Ray Serve calls `build` with the application's arguments. Ray's and vLLM's code for models is imported in the replica's
constructor only, so that the application can be built where neither is installed. vLLM counts tokens in every chunk,
as gateways ask it to, and its answers leave the replica as it wrote them.
"""

import asyncio
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from ray import serve

from tollway_serving.engines.adapters import Adapters
from tollway_serving.engines.app import InternalToken
from tollway_serving.engines.deployment import application, token_file
from tollway_serving.engines.guard import Guard
from tollway_serving.engines.protocol import EngineArgs, ModelMissingError
from tollway_serving.engines.sources import local
from tollway_serving.engines.vllm_kwargs import engine_kwargs

log = structlog.get_logger(__name__)

_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1"}
_WORKERS = {**_ENVIRONMENT, "HF_HUB_OFFLINE": "1"}  # all is on their node already; this process may load adapters later


@serve.ingress()
class VllmModel:
    """The replica."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._args = EngineArgs(**args)
        if self._args.source is None:
            raise ModelMissingError("vllm needs spec.source.uri")
        begun = time.monotonic()
        os.environ.update(_ENVIRONMENT)
        path = await self._fetch(self._args.source, self._args.source_secret)
        self._server = await _server(self._args, path)
        self._adapters = Adapters(self._fetch)
        log.info("model loaded", model=self._args.name, seconds=round(time.monotonic() - begun, 1))

    async def __serve_build_asgi_app__(self) -> Guard:
        app = await self._server.__serve_build_asgi_app__()
        await self._adapters.begin(app.state.openai_serving_models)
        return Guard(app, InternalToken(token_file()))

    async def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Other adapters, without a restart. One that fails leaves the model and the others as they are."""
        await self._adapters.want(user_config.get("adapters") or {})

    async def check_health(self) -> None:
        await self._server.check_health()

    async def _fetch(self, uri: str, secret: str | None) -> Path:
        """On the node of every part of this replica."""
        path = await asyncio.to_thread(local, uri, secret)
        if self._args.pods > 1:
            elsewhere = await _on_every_node(uri, secret)
            if elsewhere - {str(path)}:
                raise ModelMissingError(f"{uri}: it changed while it was loaded; the next try takes the newest")
        return path


async def _server(args: EngineArgs, path: Path) -> Any:
    from ray.serve.llm import LLMConfig
    from ray.serve.llm.deployment import LLMServer

    config = LLMConfig(
        model_loading_config={"model_id": args.model_id, "model_source": str(path)},
        engine_kwargs=engine_kwargs(args),
        accelerator_config=None if args.gpus else {"kind": "cpu"},
        runtime_env={"env_vars": _WORKERS},
        log_engine_metrics=True,
    )
    server: Any = LLMServer.sync_init(config)  # (the usual constructor is a coroutine, which only Serve can call)
    await server.start()
    return server


async def _on_every_node(uri: str, secret: str | None) -> set[str]:
    """Loads in every bundle of this replica's placement group; a lock on each node lets one of them work."""
    import ray
    from ray.util.placement_group import get_current_placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = get_current_placement_group()
    if group is None:
        return set()
    load: Any = ray.remote(num_cpus=0)(local)
    paths = [
        load.options(scheduling_strategy=PlacementGroupSchedulingStrategy(group, index)).remote(uri, secret)
        for index in range(group.bundle_count)
    ]
    return {str(await path) for path in paths}


def build(args: dict[str, Any]) -> serve.Application:
    """The Serve application of one ModelDeployment; `args` are EngineArgs' fields."""
    return application(VllmModel, args)
