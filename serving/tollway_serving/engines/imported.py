"""A user's ASGI application, found by its import path: called by `custom` in the replica's constructor."""

import asyncio
import importlib
import inspect
from pathlib import Path
from typing import Any

from tollway_serving.engines.guard import Application
from tollway_serving.engines.protocol import EngineArgs

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
