"""The `custom` engine: a user's own ASGI application that speaks OpenAI HTTP, in a replica behind our token.

Ray Serve calls `build` with the application's arguments; the replica imports `engine.args.import-path` in its
constructor, so that the code must be in the pods' image and nowhere else.
"""

import asyncio
from typing import Any

from ray import serve

from tollway_serving.engines.app import InternalToken
from tollway_serving.engines.deployment import application, token_file
from tollway_serving.engines.guard import Guard
from tollway_serving.engines.imported import user_application
from tollway_serving.engines.protocol import EngineArgs
from tollway_serving.engines.sources import local


@serve.ingress()
class CustomModel:
    """The replica."""

    async def __init__(self, args: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        self._args = EngineArgs(**args)
        source = self._args.source
        path = await asyncio.to_thread(local, source, self._args.source_secret) if source else None
        self._app = await user_application(self._args, path)

    def __serve_build_asgi_app__(self) -> Guard:
        return Guard(self._app, InternalToken(token_file()))

    async def check_health(self) -> None:
        check = getattr(self._app, "check_health", None)
        if check is not None:
            await check()


def build(args: dict[str, Any]) -> serve.Application:
    """The Serve application of one ModelDeployment; `args` are EngineArgs' fields."""
    return application(CustomModel, args)
