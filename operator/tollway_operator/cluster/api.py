"""Requests to the Kubernetes API server, and the one border where its answers become our errors.

Used by the rest of this package and by `lease`. Every call ends within `TIMEOUT` seconds (lists: a minute a page).
"""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
import orjson

from tollway_operator.errors import Conflict, Forbidden, Gone, OperatorError, Refused, Unreachable

MANAGER = "tollway"
"""The field manager of everything that we apply."""

TIMEOUT = 10.0
_LIST_TIMEOUT = 60.0
_PAGE = 500

JSON = "application/json"
MERGE = "application/merge-patch+json"
APPLY = "application/apply-patch+yaml"  # JSON is YAML

Object = dict[str, Any]


class AlreadyExists(Conflict):
    """An object of that name is there."""


class Expired(Conflict):
    """The list's continuation is too old: list anew."""


@dataclass(frozen=True, slots=True)
class Page:
    items: list[Object]  # without kind and apiVersion
    version: int  # of the whole list, the same on all its pages


class Api:
    """`session` authenticates by itself; see `Access`."""

    def __init__(self, session: aiohttp.ClientSession, server: str) -> None:
        self._session = session
        self._server = server

    async def get(self, path: str) -> Object:
        """Gone if it isn't there."""
        return await self._call("GET", path)

    async def create(self, path: str, body: Object, *, manager: str = MANAGER) -> Object:
        """AlreadyExists if the name is taken."""
        return await self._call("POST", path, body, params={"fieldManager": manager})

    async def replace(self, path: str, body: Object, *, seconds: float = TIMEOUT) -> Object:
        """PUT; Conflict if the body's resourceVersion is no longer the newest."""
        return await self._call("PUT", path, body, params={"fieldManager": MANAGER}, seconds=seconds)

    async def merge(self, path: str, body: Object, *, manager: str = MANAGER) -> Object:
        """A JSON merge patch: null removes. Conflict if the body has a resourceVersion that isn't the newest."""
        return await self._call("PATCH", path, body, content_type=MERGE, params={"fieldManager": manager})

    async def apply(self, path: str, body: Object) -> Object:
        """Server-side apply, taking over contested fields. With `metadata.uid` it never creates anything."""
        params = {"fieldManager": MANAGER, "force": "true"}
        return await self._call("PATCH", path, body, content_type=APPLY, params=params)

    async def delete(self, path: str, uid: str, grace_s: int | None = None) -> None:
        """Only the object of that uid. Gone if it isn't there, Conflict if another one is. A pod that is ending already
        ends sooner with a shorter `grace_s` than it had."""
        options: Object = {"preconditions": {"uid": uid}}
        await self._call("DELETE", path, options if grace_s is None else {**options, "gracePeriodSeconds": grace_s})

    async def pages(self, path: str, selector: str = "") -> AsyncIterator[Page]:
        """All objects of a list. Expired: begin again."""
        token = ""
        while True:
            params = {"limit": str(_PAGE)}
            if selector:
                params["labelSelector"] = selector
            if token:
                params["continue"] = token
            page = await self._call("GET", path, params=params, seconds=_LIST_TIMEOUT)
            meta = page["metadata"]
            yield Page(page["items"], int(meta["resourceVersion"]))
            token = meta.get("continue", "")
            if not token:
                return

    async def served(self, group: str, version: str) -> frozenset[str]:
        """Plural names of what the server serves of an API group; empty if it doesn't know the group."""
        try:
            found = await self._call("GET", f"/apis/{group}/{version}")
        except Gone:
            return frozenset()
        return frozenset(resource["name"] for resource in found["resources"])

    async def _call(
        self,
        method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"],
        path: str,
        body: Object | None = None,
        *,
        content_type: str = JSON,
        params: Mapping[str, str] | None = None,
        seconds: float = TIMEOUT,
    ) -> Object:
        try:
            async with self._session.request(
                method,
                self._server + path,
                data=None if body is None else orjson.dumps(body),
                params=params,
                headers={"Content-Type": content_type, "Accept": JSON},
                timeout=aiohttp.ClientTimeout(total=seconds),
            ) as answer:
                text = await answer.read()
                status = answer.status
        except TimeoutError as error:
            raise Unreachable(f"The Kubernetes API server did not answer {method} {path} in {seconds:.0f} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise Unreachable(f"The Kubernetes API server can't be reached: {error}") from error
        parsed = _parse(text)
        if status < 300:
            return parsed
        raise translate(status, parsed, f"{method} {path}")


def _parse(text: bytes) -> Object:
    """The body of an answer; a proxy's HTML, say, is an answer without fields."""
    try:
        parsed = orjson.loads(text)
    except orjson.JSONDecodeError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def translate(status: int, body: Mapping[str, Any], what: str) -> OperatorError:
    """The one place that knows what Kubernetes' statuses mean for us. `what` names the request for the message."""
    message = str(body.get("message") or f"{what} was answered with {status}")
    reason = body.get("reason")
    causes = (body.get("details") or {}).get("causes") or ()
    if status == 404:
        return Gone(message)
    if status == 410:
        return Expired(message)
    if status == 409:
        return AlreadyExists(message) if reason == "AlreadyExists" else Conflict(message)
    if status == 403:
        if any(cause.get("reason") == "NamespaceTerminating" for cause in causes):
            return Gone(message)
        return Forbidden(message)  # the server's words name account, verb, resource and namespace
    if status == 401:
        return Unreachable(f"The Kubernetes API server does not accept the operator's credentials ({what}).")
    if status == 429 or status >= 500:
        return Unreachable(message)
    return Refused(message)
