"""The gateway as one raw ASGI object: made by `serve_app` in Ray Serve, by tests under uvicorn.

Puts the parts together at start-up (ASGI lifespan), finds each request's route in a dictionary, and turns whatever
goes wrong into the contract's one error shape. There is no middleware.
"""

import asyncio
import gc
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from tollway_serving.contract.catalogue import Endpoint
from tollway_serving.gateway import logs
from tollway_serving.gateway.admission import Admission
from tollway_serving.gateway.auth import AddressNet, authenticate
from tollway_serving.gateway.call import Call, ClientGone
from tollway_serving.gateway.catalogue import Access, Catalogue
from tollway_serving.gateway.errors import ApiError, internal_error
from tollway_serving.gateway.fallback import Fallbacks
from tollway_serving.gateway.fetch import Fetcher
from tollway_serving.gateway.http_client import HttpUpstream
from tollway_serving.gateway.ids import uuid7
from tollway_serving.gateway.metrics import Metrics
from tollway_serving.gateway.neighbour import wait_for_models
from tollway_serving.gateway.receipts import Settler
from tollway_serving.gateway.route import Route
from tollway_serving.gateway.routes import chat, completions, docs, embeddings, health, models, usage
from tollway_serving.gateway.secrets import Secrets
from tollway_serving.gateway.settings import Settings
from tollway_serving.gateway.upstream import Upstream
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.port import Ledger

log = structlog.get_logger(__name__)

PREFIXES = ("/v1", "/api/v1")
ROUTES: tuple[Route, ...] = (
    *chat.ROUTES,
    *completions.ROUTES,
    *embeddings.ROUTES,
    *models.ROUTES,
    *usage.ROUTES,
    *health.ROUTES,
    *docs.ROUTES,
)

_BACKGROUND_S = 1.0
_LAST_ANSWERS_S = 5.0
_CLOSED = 499  # as nginx has it: for the log and the metrics only


class Gateway:
    """One replica. `settings.database_url` (or the secrets folder) says where the ledger is."""

    def __init__(
        self, settings: Settings, ledger: Callable[[str, str], Ledger], upstream: Upstream | None = None
    ) -> None:
        self.settings = settings
        self.routes = ROUTES
        self.secrets = Secrets(settings.secrets_dir, settings.providers_dir)
        self.metrics = Metrics(lambda: self._in_progress)
        self.draining = False
        self.owner = f"{socket.gethostname()[:40]}-{os.getpid()}-{uuid7()}"
        self._open_ledger = ledger
        self._upstream = upstream or HttpUpstream(self.secrets)
        self._net = AddressNet(settings.client_address_header, settings.address_requests, settings.address_window_s)
        self.access_log = logs.AccessLog(settings.access_log)
        self._in_progress = 0
        self._metrics_url = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._kept: set[asyncio.Task[None]] = set()
        self._ledger_started = False
        self._paths: dict[str, dict[str, Route]] = {}
        self._folders: dict[str, dict[str, Route]] = {}  # of a path that ends with {name}
        for route in ROUTES:
            for prefix in ("",) if route.bare else PREFIXES:
                path, brace, _ = (prefix + route.path).partition("{")
                (self._folders if brace else self._paths).setdefault(path, {})[route.method] = route

    async def start(self) -> None:
        """Returns when requests can be taken. A ledger that is away keeps the replica unready, not down."""
        url = self.settings.database_url or self.secrets.database_url()
        if url is None:
            raise RuntimeError("no database: set TOLLWAY_DATABASE_URL, or put database-url into TOLLWAY_SECRETS_DIR")
        self.ledger = self._open_ledger(url, self.owner)
        self.settler = Settler(self.ledger, self.metrics)
        self.catalogue = Catalogue(self.ledger)
        await self._upstream.start()
        admission = Admission(self.ledger, self.settler, self.metrics, self.owner)
        settings = self.settings
        self._fetcher = Fetcher(settings.image_bytes, settings.image_timeout_s, settings.image_networks)
        self.fallbacks = Fallbacks(self.catalogue, admission, self._upstream, self._fetcher, self.ledger, self.metrics)
        port = self.metrics.start(self.settings.metrics_host, self.settings.metrics_port)
        self._metrics_url = f"http://{self.settings.metrics_address or self.settings.metrics_host}:{port}/metrics"
        await self._start_ledger()
        if self.settings.models_wait_s:
            entries = [model.entry for model in self.catalogue.models.values()]
            await wait_for_models(entries, self.settings.models_wait_s)
        self._tasks.append(asyncio.create_task(self._background(), name="gateway"))
        gc.collect()
        gc.freeze()
        log.info("gateway_started", owner=self.owner, metrics=self._metrics_url)

    async def close(self) -> None:
        """Ends the background work; what was submitted to the ledger is kept."""
        self.draining = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._kept:
            await asyncio.wait(self._kept, timeout=_LAST_ANSWERS_S)
        await self.settler.close()
        await self.catalogue.close()
        if self._ledger_started:
            await self.ledger.close()
        await self._fetcher.close()
        await self._upstream.close()
        self.metrics.close()
        self.access_log.flush()

    async def _start_ledger(self) -> None:
        try:
            await self.ledger.start()
        except LedgerUnavailable as error:
            log.warning("ledger_unavailable", error=str(error))
            return
        self._ledger_started = True
        await self.catalogue.start()

    async def _background(self) -> None:
        """Starts the ledger if it was away, announces this replica (the ledger's client repeats that), shows state."""
        announced = False
        while True:
            try:
                if not self._ledger_started:
                    await self._start_ledger()
                if self._ledger_started and not announced:
                    await self.ledger.announce(self.owner, self._metrics_url)
                    announced = True
            except LedgerUnavailable as error:
                log.warning("ledger_unavailable", error=str(error))
            except Exception:
                log.exception("gateway_background_failed")
            self.metrics.loaded(self.catalogue.revision)
            await asyncio.sleep(_BACKGROUND_S)

    def keep(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Runs to its end even if its request is cancelled."""
        task = asyncio.create_task(work)
        self._kept.add(task)
        task.add_done_callback(self._let_go)
        return task

    def _let_go(self, task: "asyncio.Task[None]") -> None:
        self._kept.discard(task)
        if not task.cancelled():
            task.exception()  # seen: its request may have nobody left to be told

    async def ledger_answers(self) -> bool:
        """Asks the ledger for what changed: nothing, as a rule."""
        if not self._ledger_started:
            return False
        try:
            await self.ledger.load_catalogue(self.catalogue.revision)
        except LedgerUnavailable:
            return False
        return True

    def authenticate(self, call: Call, endpoint: Endpoint | None) -> Access:
        """The caller; ApiError if it has no valid key or may not use the endpoint."""
        access = authenticate(self.catalogue, call.header(b"authorization"), endpoint)
        call.plan = access.plan.name
        call.record["account"] = access.key.account
        call.record["key"] = access.key.key_id
        return access

    def ignores_unsupported(self, call: Call, access: Access) -> bool:
        """Whether parameters that this model can't carry out are ignored (and named) instead of refused."""
        value = call.header(b"x-unsupported-parameters")
        if value is None:
            return access.plan.unsupported_parameters == "Ignore"
        text = value.strip().lower()
        if text not in (b"ignore", b"refuse"):
            raise ApiError("invalid_value", "The header x-unsupported-parameters is ignore or refuse.")
        return text == b"ignore"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        kind = scope["type"]
        if kind == "http":
            await self._http(Call(scope, receive, send, self.settings.request_id_header))
        elif kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    async def direct(self, scope: Any, receive: Any, send: Any) -> None:
        """A request that Serve has not seen: see `edge`."""
        await self._http(Call(scope, receive, send, emit_id=True))

    async def _http(self, call: Call) -> None:
        self._in_progress += 1
        try:
            await self._answer(call)
        except ClientGone:
            call.gone = True
        except asyncio.CancelledError:
            if not call.gone:
                call.record["cancelled"] = True
                raise
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
        finally:
            self._in_progress -= 1
            call.unwatch()
            self._finish(call)

    async def _answer(self, call: Call) -> None:
        try:
            route = self._find(call)
            if route.net:
                client = call.scope.get("client")
                net = self._net
                net.admit(client[0] if client else None, call.last_header(net.header) if net.header else None)
                if self._in_progress > self.settings.max_requests:
                    raise ApiError(
                        "model_overloaded", "Too many requests at the moment. Please retry.", retry_after_s=1
                    )
            await route.handler(self, call)
        except ApiError as error:
            await call.fail(error)
        except (ClientGone, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("request_failed", request_id=call.request_id, route=call.route)
            await call.fail(internal_error())

    def _find(self, call: Call) -> Route:
        path: str = call.scope["path"]
        methods = self._paths.get(path)
        if methods is None:
            folder = next((f for f in self._folders if path.startswith(f) and len(path) > len(f)), None)
            if folder is None:
                raise ApiError("not_found", "There is nothing here. Check the URL's path.")
            methods = self._folders[folder]
            call.rest = path[len(folder) :]
        route = methods.get(call.scope["method"])
        if route is None:
            allowed = ", ".join(sorted(methods))
            raise ApiError(
                "method_not_allowed",
                f"This path takes {allowed} only.",
                headers=((b"allow", allowed.encode("ascii")),),
            )
        call.route = route.path
        return route

    def _finish(self, call: Call) -> None:
        status = _CLOSED if call.gone else call.status
        milliseconds = call.milliseconds()
        self.metrics.request(call.plan, call.model, call.route, status, call.code, milliseconds / 1000)
        first = call.record.get("first_token_ms")
        if first is not None:
            self.metrics.first_token(call.model, call.route, first / 1000)
        self.access_log.write(
            call.began_at,
            {
                "event": "request",
                "level": "info",
                "request_id": call.request_id,
                "method": call.scope["method"],
                "route": call.route,
                "status": status,
                "code": call.code,
                "duration_ms": milliseconds,
                "plan": call.plan,
                "model": call.model,
                **call.record,
            },
        )

    async def _lifespan(self, receive: Any, send: Any) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.start()
                except Exception as error:
                    log.exception("gateway_failed_to_start")
                    await send({"type": "lifespan.startup.failed", "message": str(error)})
                    return
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def make_app(overrides: Mapping[str, Any] | None = None) -> Gateway:
    """The gateway with settings from the environment; `overrides` win."""
    from tollway_serving.ledger.store import open_ledger  # here, so that the routes import without a database

    return Gateway(Settings.load(overrides), open_ledger)
