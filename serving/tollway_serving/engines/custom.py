"""The `custom` engine: a user's own ASGI application that speaks OpenAI HTTP, in a replica behind our token.

Ray Serve calls `build` with the application's arguments; the replica imports `engine.args.import-path` in its
constructor, so that the code must be in the pods' image and nowhere else.
"""

import asyncio
import importlib
import inspect
from pathlib import Path
from typing import Any

from ray import serve

from tollway_serving.engines.app import InternalToken
from tollway_serving.engines.deployment import application, token_file
from tollway_serving.engines.guard import Application, Guard
from tollway_serving.engines.protocol import EngineArgs
from tollway_serving.engines.sources import local

_OWN = ("import-path", "slots")


async def user_application(args: EngineArgs, path: Path | None) -> Application:
    """What the import path names: an ASGI application, or a function of one argument that returns it. The argument is
    a dict: model_id, path (of the weights, if the object names any), args, context_tokens, output_tokens, slots."""
    import_path = str(args.args["import-path"])
    module, _, name = import_path.partition(":")
    if not name:
        raise ValueError(f"engine.args.import-path: {import_path}: write MODULE:NAME")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"engine.args.import-path: {import_path} can't be imported in this image: {error}") from error
    if len(inspect.signature(found).parameters) != 1:
        return found  # type: ignore[no-any-return]
    told = {
        "model_id": args.model_id,
        "path": path,
        "args": {name: value for name, value in args.args.items() if name not in _OWN},
        "context_tokens": args.context_tokens,
        "output_tokens": args.output_tokens,
        "slots": args.slots,
    }
    if inspect.iscoroutinefunction(found):
        return await found(told)  # type: ignore[no-any-return]
    return await asyncio.to_thread(found, told)


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
