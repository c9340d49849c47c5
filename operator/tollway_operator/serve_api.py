"""The `Ray` port over the Serve REST API of the dashboard: the only caller of it; used by `reconcile`.

Ray's own words (HTTP statuses, states, tracebacks) end here: callers see `ports.RayStatus` and this project's errors.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast, get_args

import aiohttp
import orjson

from tollway_operator.errors import Refused, Unreachable
from tollway_operator.ports import AppState, AppStatus, RayStatus

_APPLICATIONS = "/api/serve/applications/"
_LOG_FILE = "/api/v0/logs/file"
_STATUS_TIMEOUT = 10.0
_PUT_TIMEOUT = 120.0  # the first PUT starts Serve itself
_ANSWER_LIMIT = 64 << 20
_WORDS_LIMIT = 2_000  # of a message that goes into a condition


class ServeApi:
    """`address` is the dashboard's URL (http://127.0.0.1:8265). `http_options` and `proxy_location` go into every PUT;
    Serve takes them only when it starts. `token` is Ray's own auth token, where the cluster asks for one.
    `await close()` ends its connections."""

    def __init__(
        self,
        address: str,
        *,
        http_options: Mapping[str, Any] | None = None,
        proxy_location: str = "EveryNode",
        token: str | None = None,
    ) -> None:
        self._address = address.rstrip("/")
        self._http_options = dict(http_options or {})
        self._proxy_location = proxy_location
        self._headers = {"authorization": f"Bearer {token}"} if token else {}
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def status(self) -> RayStatus:
        """Every application that Serve has; none at all before the first PUT. Unreachable if Ray doesn't answer."""
        answer = await self._call("GET", _APPLICATIONS, timeout=_STATUS_TIMEOUT)
        try:
            details = orjson.loads(answer)
            apps = {name: _app(name, app) for name, app in (details.get("applications") or {}).items()}
            port = int((details.get("http_options") or {}).get("port") or self._http_options.get("port", 8000))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise Unreachable(f"the Serve REST API at {self._address} gave an answer that can't be read") from error
        return RayStatus(apps=apps, http_port=port)

    async def put(self, applications: tuple[Mapping[str, Any], ...]) -> None:
        """Sends the whole application set. Refused, with Ray's words, if Ray finds it invalid."""
        body: dict[str, Any] = {"proxy_location": self._proxy_location, "applications": list(applications)}
        if self._http_options:
            body["http_options"] = self._http_options
        await self._call("PUT", _APPLICATIONS, timeout=_PUT_TIMEOUT, body=body)

    async def logs(self, app: str, lines: int = 20) -> str:
        """The last lines that the application's newest replica that doesn't run wrote to stderr, else to stdout; "" if
        there are none, or its node is gone."""
        details = orjson.loads(await self._call("GET", _APPLICATIONS, timeout=_STATUS_TIMEOUT))
        deployments = ((details.get("applications") or {}).get(app) or {}).get("deployments") or {}
        replica = _suspect(list(deployments.values()))
        if replica is None or not replica.get("actor_id"):
            return ""
        for stream in ("err", "out"):
            params = {"actor_id": str(replica["actor_id"]), "suffix": stream, "lines": str(lines)}
            try:
                answer = await self._call("GET", _LOG_FILE, timeout=_STATUS_TIMEOUT, params=params)
            except Refused:
                continue
            # Ray marks whose lines follow: ":actor_name:ServeReplica:small:model".
            found = [line for line in answer.decode("utf-8", "replace").splitlines() if not line.startswith(":")]
            text = "\n".join(found[-lines:]).strip()
            if text:
                return shorten(text)
        return ""

    async def _call(
        self,
        method: str,
        path: str,
        *,
        timeout: float,  # noqa: ASYNC109 - it is aiohttp's own, which also covers the reading of the answer
        body: Any = None,
        params: Mapping[str, str] | None = None,
    ) -> bytes:
        if self._session is None:
            self._session = aiohttp.ClientSession(headers=self._headers)
        try:
            async with self._session.request(
                method,
                self._address + path,
                data=None if body is None else orjson.dumps(body),
                headers={} if body is None else {"content-type": "application/json"},
                params=params,
                timeout=aiohttp.ClientTimeout(total=timeout),
                allow_redirects=False,
            ) as response:
                answer = await _whole(response)
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise Unreachable(f"the Serve REST API at {self._address} doesn't answer: {reason}") from error
        if 200 <= status < 300:
            return answer
        words = shorten(answer.decode("utf-8", "replace"))
        if status in (401, 403):
            raise Unreachable(f"the Serve REST API at {self._address} wants another auth token (HTTP {status})")
        if 400 <= status < 500:
            raise Refused(words)
        raise Unreachable(f"the Serve REST API at {self._address} answers HTTP {status}: {words}")


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    """All of an answer, in its parts as they come; not more than _ANSWER_LIMIT."""
    answer = bytearray()
    async for part in response.content.iter_any():
        answer += part
        if len(answer) > _ANSWER_LIMIT:
            break
    return bytes(answer)


def _app(name: str, details: Mapping[str, Any]) -> AppStatus:
    deployments = list((details.get("deployments") or {}).values())
    states: Counter[str] = Counter()
    for deployment in deployments:
        states.update(str(replica["state"]) for replica in deployment.get("replicas") or ())
    status = details["status"]
    if status not in get_args(AppState):
        raise ValueError(f"unknown application status {status}")
    return AppStatus(
        name=name,
        status=cast("AppState", status),
        message=_message(str(details.get("message") or ""), deployments),
        config=details.get("deployed_app_config"),
        running_replicas=states.get("RUNNING", 0),
        total_replicas=sum(int(deployment.get("target_num_replicas") or 0) for deployment in deployments),
        replica_states=dict(states),
        last_deployed=float(details.get("last_deployed_time_s") or 0.0),
        nodes=frozenset(
            str(replica["node_ip"])
            for deployment in deployments
            for replica in deployment.get("replicas") or ()
            if replica.get("node_ip")
        ),
    )


def _message(app: str, deployments: Sequence[Mapping[str, Any]]) -> str:
    """A deployment's own message says what happened; the application's only names the deployment."""
    words = [
        str(deployment["message"])
        for deployment in deployments
        if deployment.get("message") and deployment.get("status") not in ("HEALTHY", "UPSCALING", "DOWNSCALING")
    ]
    return shorten("\n".join(words) or app)


def _suspect(deployments: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    dead = [replica for deployment in deployments for replica in deployment.get("recent_dead_replicas") or ()]
    live = [
        replica
        for deployment in deployments
        for replica in deployment.get("replicas") or ()
        if replica.get("state") != "RUNNING"
    ]
    found = live or dead
    newest: Mapping[str, Any] | None = max(found, key=lambda replica: replica.get("start_time_s") or 0, default=None)
    return newest


def shorten(text: str, limit: int = _WORDS_LIMIT) -> str:
    """The end of a long text: a traceback's last lines say what happened."""
    text = text.strip()
    return text if len(text) <= limit else "…" + text[-limit:]
