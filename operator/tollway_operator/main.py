"""`tollway operator`: the reconcile over a Kubernetes API server; called by the command line, and nobody else.

Kopf watches, a Lease decides which replica works, and a small server of our own answers probes and Prometheus.
"""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import kopf
import orjson
import structlog
from aiohttp import web

from tollway_operator import reconcile
from tollway_operator.builders.ray_cluster import SERVE_PORT
from tollway_operator.cluster import Access, Api, ClusterObjects, Names
from tollway_operator.cluster.objects import GROUP, PLURALS, VERSION
from tollway_operator.errors import OperatorError
from tollway_operator.existing_ray import ExistingRay
from tollway_operator.handlers import Watches, kopf_settings, register
from tollway_operator.kuberay import KubeRay, owner_reference
from tollway_operator.lease import Lease
from tollway_operator.ledger_link import LedgerLink
from tollway_operator.operator_settings import OperatorSettings, settings_from_env
from tollway_operator.platform import Platform
from tollway_operator.probes import State, application
from tollway_operator.serve_api import ServeApi
from tollway_serving.ledger.publish import open_publisher

__all__ = ["OperatorSettings", "run_operator", "settings_from_env"]

_PASS_MAY_END = 10.0  # seconds that a pass in progress gets at SIGTERM; Kubernetes kills after 30
_CRD_PAUSE = 5.0
_COLLECTED_AFTER = (50_000, 10, 10)
"""Python's own default looks for garbage in rings after every 700 objects: with thousands of ApiKeys known, most of
what a pass costs would be that."""

_log = structlog.get_logger()


def run_operator(settings: OperatorSettings) -> int:
    """Runs until SIGTERM or SIGINT. Answers the process's exit status: 0, or 1 after what a restart may cure."""
    configure_logging(settings.log_level)
    gc.set_threshold(*_COLLECTED_AFTER)
    return asyncio.run(_Operator(settings).run())


class _Operator:
    """One replica; `run` is a walk through its life."""

    def __init__(self, settings: OperatorSettings) -> None:
        self._settings = settings
        self._stop = asyncio.Event()
        self._kopf_stop = asyncio.Event()
        self._missing = "The first look at the Kubernetes API server is not over yet."

    async def run(self) -> int:
        async with AsyncExitStack() as stack:
            try:
                access = Access()
            except OperatorError as error:
                _log.error("no_api_server", error=str(error))
                return 1
            stack.push_async_callback(access.close)
            self._take_signals()
            failed = await self._serve(access, stack)
        return int(failed)

    async def _serve(self, access: Access, stack: AsyncExitStack) -> bool:
        """Whether it ended by itself."""
        settings = self._settings
        api = Api(access.session(), access.server)
        objects = ClusterObjects(
            api,
            settings.namespaces,
            Names(settings.namespace, settings.memory_name, settings.providers_secret, settings.sources_secret),
        )
        identity = settings.identity or f"{socket.gethostname()}_{uuid.uuid4().hex[:8]}"
        lease = Lease(api, settings.namespace, settings.lease_name, identity, settings.lease_seconds)
        watches = Watches(objects)
        publisher = LedgerLink(
            open_publisher(settings.database_url, settings.scope, settings.usage_days), lease.is_held
        )
        stack.push_async_callback(publisher.close)
        platform = await self._platform(api)
        stack.push_async_callback(platform.close)
        state = State(
            lambda: [text for text in (self._missing, objects.trouble, watches.trouble, lease.trouble) if text]
        )

        async def work() -> None:
            state.leading_since = time.monotonic()
            objects.begin()
            try:
                await publisher.start()
                await self._reconcile(objects, platform, publisher, state)
            finally:
                state.leading_since = None

        runner = web.AppRunner(application(state, publisher), access_log=None)
        stack.push_async_callback(runner.cleanup)
        await runner.setup()
        host, _, port = settings.listen.rpartition(":")
        await web.TCPSite(runner, host, int(port)).start()

        if not await self._crds_are_there(api):
            return False
        watching = asyncio.create_task(self._watch(access, objects, watches))
        listing = asyncio.create_task(objects.run())
        leading = asyncio.create_task(self._lead(objects, lease, work))
        try:
            await asyncio.wait((watching, listing, leading), return_when=asyncio.FIRST_COMPLETED)
            failed = not self._stop.is_set()
        finally:
            self._stop.set()
            await asyncio.gather(leading, return_exceptions=True)
            listing.cancel()
            await asyncio.gather(listing, return_exceptions=True)
            self._kopf_stop.set()  # last, because Kopf cancels every task that was made after its start
            results = await asyncio.gather(leading, listing, watching, return_exceptions=True)
        for result in results:
            if isinstance(result, Exception):
                failed = True
                _log.error("operator_failed", exc_info=result)
        return failed

    async def _platform(self, api: Api) -> Platform:
        """A Ray cluster of our own, or the one that is there."""
        settings = self._settings
        if settings.kuberay is None:
            return ExistingRay(settings.ray_address, token=settings.ray_token)
        owner = await owner_reference(api, settings.namespace, settings.deployment) if settings.deployment else None
        return KubeRay(api, settings.kuberay, self._connect, owner=owner)

    def _connect(self, address: str) -> ServeApi:
        http = {"host": "0.0.0.0", "port": SERVE_PORT}  # noqa: S104 - HAProxy of each pod
        return ServeApi(address, token=self._settings.ray_token, http_options=http)

    async def _crds_are_there(self, api: Api) -> bool:
        """Waits for them; False if it is time to stop."""
        while not self._stop.is_set():
            try:
                missing = sorted(set(PLURALS.values()) - await api.served(GROUP, VERSION))
                trouble = (
                    f"The API server has no {', '.join(missing)} of {GROUP}/{VERSION}: apply the CRDs."
                    if missing
                    else ""
                )
            except OperatorError as error:
                trouble = str(error)
            if not trouble:
                self._missing = ""
                return True
            if trouble != self._missing:
                _log.warning("waiting", error=trouble)
            self._missing = trouble
            await self._unless_stopped(asyncio.sleep(_CRD_PAUSE))
        return False

    async def _watch(self, access: Access, objects: ClusterObjects, watches: Watches) -> None:
        """Runs Kopf until `_kopf_stop` is set."""
        registry = kopf.OperatorRegistry()
        session = access.session(watches.answered)

        @kopf.on.login(registry=registry)
        async def login(**_: Any) -> kopf.AiohttpSession:
            return kopf.AiohttpSession(server=access.server, aiohttp_session=session)

        register(registry, objects)
        existing = asyncio.all_tasks()
        tasks = await kopf.spawn_tasks(
            registry=registry,
            settings=kopf_settings(),
            standalone=True,
            clusterwide=not self._settings.namespaces,
            namespaces=self._settings.namespaces,
            stop_flag=self._kopf_stop,
        )
        self._take_signals()  # back from Kopf, which would stop before the work is done
        await kopf.run_tasks(tasks, ignored=existing)

    async def _lead(self, objects: ClusterObjects, lease: Lease, work: Callable[[], Awaitable[None]]) -> None:
        """Nothing is decided before everything was seen."""
        await self._unless_stopped(objects.listed.wait())
        await lease.lead(work, self._stop)

    async def _reconcile(
        self, objects: ClusterObjects, platform: Platform, publisher: LedgerLink, state: State
    ) -> None:
        """Runs until stopped; the pass in progress may end, within reason."""
        settings = self._settings.reconcile
        run = reconcile.run(
            objects, platform, publisher, settings, self._stop, on_progress=state.on_progress, platform=platform
        )
        running = asyncio.create_task(run)
        try:
            await self._unless_stopped(asyncio.wait((running,)))
            await asyncio.wait((running,), timeout=_PASS_MAY_END)
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        if not running.cancelled():
            running.result()

    async def _unless_stopped(self, what: Coroutine[Any, Any, object]) -> None:
        """Waits for it, or until it is time to stop."""
        waiting = (asyncio.create_task(what), asyncio.create_task(self._stop.wait()))
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)


def configure_logging(level: str) -> None:
    """JSON lines on standard error, ours and those of libraries."""
    number = getattr(logging, level.upper())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render = structlog.processors.JSONRenderer(serializer=lambda value, **_: orjson.dumps(value, default=str).decode())
    structlog.configure(
        processors=[*shared, structlog.processors.format_exc_info, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                render,
            ],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
    # Kopf calls each refused try of a watch an error; `Watches` says what is wrong, once.
    logging.getLogger("kopf").setLevel(logging.DEBUG if number <= logging.DEBUG else logging.ERROR)


if __name__ == "__main__":
    try:
        settings = settings_from_env(os.environ)
    except ValueError as problem:
        sys.exit(f"tollway operator: {problem}")
    sys.exit(run_operator(settings))
