"""`tollway up`: the whole platform on this machine from YAML files, without a cluster. Called by `main`.

It owns everything it starts: a Ray head on loopback with ports and folders of its own, the ledger's migration, the same
reconcile that the operator runs, and a metrics port. When it ends, for whatever reason, all of that ends.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import structlog

from tollway_cli import ray_head
from tollway_cli.console import Steps
from tollway_cli.errors import CliError
from tollway_cli.local_ray import LocalRay
from tollway_cli.metrics import MetricsServer
from tollway_cli.state import StateFolder, exports
from tollway_operator import reconcile
from tollway_operator.errors import OperatorError
from tollway_operator.files import FilesObjects
from tollway_operator.ports import Kind
from tollway_operator.serve_api import ServeApi
from tollway_operator.settings import Settings
from tollway_serving.contract.engines import ENGINES
from tollway_serving.engines.protocol import ModelMissingError
from tollway_serving.engines.weights import locate, usable_cores
from tollway_serving.ledger.ops import LedgerUnavailable
from tollway_serving.ledger.publish import open_publisher

_READY_TIMEOUT_S = 300.0
_POLL_S = 0.1
_STOP_S = 5.0
_CLEAN_UP = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_Key = tuple[Kind, str, str]
_EXAMPLES = {
    "MODEL_FORMAT_TEXT": ("/chat/completions", '"messages": [{"role": "user", "content": "Say hello."}]'),
    "MODEL_FORMAT_EMBEDDING": ("/embeddings", '"input": "Say hello."'),
}
"""A first request by what a model answers in: its path, and its parameters beside the model."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    files: tuple[Path, ...]
    state_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    database_url: str | None = None  # None: SQLite in the state folder
    metrics_port: int = 0  # 0: any free one
    usage_days: int | None = None  # how long single calls are kept; None: for ever


def run_up(options: UpOptions) -> int:
    """Runs until a signal comes; answers the exit status. CliError, with one line, for everything foreseen."""
    if sys.platform != "linux":
        raise CliError(f"tollway up runs on Linux; this is {sys.platform}: use a container or a virtual machine")
    state = StateFolder.open(options.state_dir)
    try:
        with (state.root / "up.log").open("a", encoding="utf-8") as log:
            _log_to(log)
            try:
                return asyncio.run(_Up(options, state, Steps()).run())
            except CliError:
                raise
            except Exception as error:
                traceback.print_exc(file=log)
                raise CliError(f"unexpected: {_one_line(error) or type(error).__name__}; see {log.name}") from error
    finally:
        state.close()


class _Up:
    def __init__(self, options: UpOptions, state: StateFolder, steps: Steps) -> None:
        self._options = options
        self._state = state
        self._steps = steps
        self._stop = asyncio.Event()
        self._progress = reconcile.Progress()
        self._progressed = asyncio.Event()
        self._objects = FilesObjects(options.files, state.root)
        self._shown: dict[_Key, tuple[str, int | None]] = {}
        self._problems: frozenset[str] = frozenset()
        self._announced = False

    @property
    def _url(self) -> str:
        host = "127.0.0.1" if self._options.host in ("0.0.0.0", "::") else self._options.host  # noqa: S104 - compared only
        return f"http://{f'[{host}]' if ':' in host else host}:{self._options.port}"

    async def run(self) -> int:
        for number in _CLEAN_UP:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal)
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._steps.finish)
            try:
                return await self._run(stack)
            except LedgerUnavailable as error:
                raise CliError(f"the ledger can't be used: {_one_line(error)}; look at --database-url") from error
            except OperatorError as error:
                raise CliError(_one_line(error)) from error
            except OSError as error:
                raise CliError(
                    f"{error.strerror or error}" + (f": {error.filename}" if error.filename else "")
                ) from error

    async def _run(self, stack: contextlib.AsyncExitStack) -> int:
        _check_port(self._options.host, self._options.port)
        objects = self._objects
        await objects.start()
        stack.push_async_callback(objects.close)
        _check_models([(raw.kind, raw.spec) for raw in (await objects.snapshot()).objects])

        database_url = self._options.database_url or self._state.default_database()
        ray_token = self._state.write_platform(database_url)
        head = ray_head.plan_head(self._state.root, self._state.platform, os.environ)
        ray = LocalRay(head, usable_cores(), self._state.lock, self._state.root / "ray.log")
        stack.callback(ray.stop)
        api = ServeApi(
            head.dashboard,
            http_options={"host": self._options.host, "port": self._options.port},
            proxy_location="HeadOnly",
            token=ray_token,
        )
        stack.push_async_callback(api.close)
        publisher = open_publisher(database_url, usage_days=self._options.usage_days)
        stack.push_async_callback(publisher.close)

        async def start_ray() -> None:
            with self._steps.step("Ray"):
                await ray.ready(api)

        async def start_ledger() -> None:
            with self._steps.step(f"ledger ({urlsplit(database_url).scheme})"):
                await publisher.start()

        await self._unless_stopped(asyncio.gather(start_ray(), start_ledger()))
        metrics = MetricsServer(publisher, self._options.metrics_port)
        stack.push_async_callback(metrics.close)
        metrics_port = await metrics.start()

        settings = Settings(base_url=f"{self._url}/v1", models_url=self._url, embedded=True)
        work = asyncio.create_task(
            reconcile.run(objects, api, publisher, settings, self._stop, on_progress=self._on_progress)
        )
        ended = asyncio.create_task(ray.ended())
        stack.push_async_callback(_finish, work, self._stop)
        with self._steps.step("gateway and models"):
            await self._unless_stopped(self._until_ready(), work, ended)
        if not self._stop.is_set():
            await self._announce(metrics_port)
            await asyncio.wait(
                {work, ended, asyncio.create_task(self._stop.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
        if ended.done():
            raise CliError(ray.obituary())
        if work.done():
            work.result()
        self._steps.line("stopping")
        return 0

    def _on_signal(self) -> None:
        if self._stop.is_set():
            os._exit(130)  # asked twice: the guardian clears up
        self._stop.set()

    async def _unless_stopped(self, wanted: Any, *others: asyncio.Task[Any]) -> None:
        """Awaits `wanted`; returns early when a signal comes or one of `others` ends."""
        task = asyncio.ensure_future(wanted)
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait({task, stop, *others}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if task.done():
            task.result()
            return
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        for other in others:
            if other.done() and not self._stop.is_set():
                self._stop.set()

    def _on_progress(self, progress: reconcile.Progress) -> None:
        if self._stop.is_set():
            return
        self._progress = progress
        self._progressed.set()
        if self._announced:
            self._show_changes()

    async def _until_ready(self) -> None:
        """Everything has settled and a gateway answers. Models that can't start don't hold up the others."""
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not self._progress.settled:
            self._progressed.clear()
            try:
                await asyncio.wait_for(self._progressed.wait(), max(0.1, deadline - time.monotonic()))
            except TimeoutError:
                reasons = "; ".join(self._progress.errors) or "see " + str(self._state.root / "up.log")
                raise CliError(f"not ready after {_READY_TIMEOUT_S:.0f} s: {reasons}") from None
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while not await _answers(session, f"{self._url}/readyz"):
                if time.monotonic() > deadline:
                    raise CliError(f"the gateway at {self._url} is not ready after {_READY_TIMEOUT_S:.0f} s")
                await asyncio.sleep(_POLL_S)

    async def _announce(self, metrics_port: int) -> None:
        seconds = self._steps.finish()
        self._announced = True
        self._show_changes(only_bad=True)
        self._steps.line(
            f"ready after {seconds:.1f} s; metrics of all replicas: http://127.0.0.1:{metrics_port}/metrics/targets"
        )
        statuses = sorted(self._progress.statuses.items())
        key = next((name for name, status in statuses if name[0] == "ApiKey" and _ready(status)[0]), None)
        if key is None:
            self._steps.line("there is no usable ApiKey: add one to the files, and it works at once")
            return
        secret = self._objects.key_file(key[1], key[2]).read_text("utf-8").strip()
        base_url = f"{self._url}/v1"
        self._state.write_env(base_url, secret)
        lines = exports(base_url, secret)
        if model := await _first_model(base_url, secret):
            path, asked = _EXAMPLES.get(model["output_format"], _EXAMPLES["MODEL_FORMAT_TEXT"])
            body = f'{{"model": "{model["id"]}", {asked}}}'
            lines += (
                f"curl {base_url}{path} -H {shlex.quote(f'Authorization: Bearer {secret}')} "
                f"-H 'Content-Type: application/json' -d {shlex.quote(body)}\n"
            )
        sys.stdout.write(lines)
        sys.stdout.flush()

    def _show_changes(self, *, only_bad: bool = False) -> None:
        problems = frozenset(self._objects.problems)
        for problem in sorted(problems - self._problems):
            self._steps.line(f"{problem} (its last good version stays)")
        self._problems = problems
        seen: dict[_Key, tuple[str, int | None]] = {}
        for name, status in sorted(self._progress.statuses.items()):
            if not status:  # of a key whose Secret is being made
                continue
            good, text = _ready(status)
            generation = status.get("servingGeneration", status.get("observedGeneration"))
            seen[name] = (text, generation)
            before, known = self._shown.get(name, ("", None))
            applied = text == before and known not in (None, generation)
            if (text != before or applied) and not (only_bad and good):
                more = " (as it is written now)" if applied else ""
                self._steps.line(f"{name[0]} {name[1]}/{name[2]}: {text}{more}")
        for name in self._shown.keys() - seen.keys():
            self._steps.line(f"{name[0]} {name[1]}/{name[2]}: deleted")
        self._shown = seen


def _ready(status: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the object works, and its condition that is worth a line: the Ready one, or what stands in its way, or,
    where it works, in what way worse than written."""
    conditions = {condition["type"]: condition for condition in status.get("conditions", ())}
    ready = conditions.get("Ready", {})
    works = ready.get("status") == "True"
    amiss = [("Accepted", "False"), ("ResolvedRefs", "False"), *([("Degraded", "True")] if works else [])]
    told = next((conditions[kind] for kind, bad in amiss if conditions.get(kind, {}).get("status") == bad), ready)
    text = ": ".join(part for part in (told.get("reason", "Unknown"), told.get("message", "")) if part)
    return works, " ".join(text.split())


async def _answers(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError, OSError):
        return False


async def _first_model(base_url: str, key: str) -> dict[str, Any] | None:
    """A model that the key may use, asked of the gateway itself."""
    headers = {"authorization": f"Bearer {key}"}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10), headers=headers) as session,
        session.get(f"{base_url}/models") as response,
    ):
        models = (await response.json()).get("data") or []
    return dict(models[0]) if models else None


async def _finish(work: asyncio.Task[None], stop: asyncio.Event) -> None:
    """Lets the reconcile end its pass, but not for long: it is made to be killed at any moment."""
    stop.set()
    await asyncio.wait({work}, timeout=_STOP_S)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)


def _check_port(host: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise CliError(
                f"port {port} on {host} can't be used ({error.strerror}): stop what listens there, or set --port"
            ) from error


def _check_models(objects: list[tuple[Kind, Mapping[str, Any]]]) -> None:
    """Weights that no package here has would only show after half a minute, in a condition."""
    for kind, spec in objects:
        uri = (spec.get("source") or {}).get("uri", "")
        facts = ENGINES.get((spec.get("engine") or {}).get("name", ""))
        if kind == "ModelDeployment" and facts is not None and facts.import_path and uri.startswith("package://"):
            try:
                locate(uri)
            except ModelMissingError as error:
                raise CliError(str(error)) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _log_to(file: Any) -> None:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(file),
    )
