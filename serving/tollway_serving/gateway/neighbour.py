"""At a replica's start, waits until the proxy beside it knows the models: called by `app` where settings say so.

On several nodes each has a proxy of its own, through which its gateways reach the models. Both start at the same time,
and the other nodes send a gateway requests as soon as it runs: each of them would fail until its own proxy is there.
"""

import asyncio
import time
from collections.abc import Collection, Iterable
from urllib.parse import urlsplit

import aiohttp
import orjson
import structlog

from tollway_serving.contract.catalogue import ModelEntry

log = structlog.get_logger(__name__)

_ROUTES = "/-/routes"  # Serve's proxies: {"/prefix": "application"}
_TRY_S = 2.0
_POLL_S = 0.2


async def wait_for_models(entries: Iterable[ModelEntry], seconds: float) -> None:
    """Until the proxy has the routes of those that are Ready, or the time is over: they may be gone."""
    wanted: dict[str, set[str]] = {}
    for entry in entries:
        if entry.target.internal and entry.state == "Ready":
            url = urlsplit(entry.target.url)
            wanted.setdefault(f"{url.scheme}://{url.netloc}", set()).add(url.path.removesuffix("/v1"))
    deadline = time.monotonic() + seconds
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TRY_S), trust_env=False) as session:
        for origin, paths in wanted.items():
            while lacking := paths.difference(await _routes(session, origin)):
                if time.monotonic() > deadline:
                    log.warning("models_not_reachable_yet", proxy=origin, lacking=sorted(lacking)[:10])
                    return
                await asyncio.sleep(_POLL_S)


async def _routes(session: aiohttp.ClientSession, origin: str) -> Collection[str]:
    try:
        async with session.get(origin + _ROUTES) as answer:
            found = orjson.loads(await answer.read()) if answer.status == 200 else {}
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return ()
    return found if isinstance(found, dict) else ()
