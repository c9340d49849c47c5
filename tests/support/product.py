"""The whole product but for Ray and the operator, in a thread of its own: for clients that block (SDKs, schemathesis).

A gateway under uvicorn with the real SQLite ledger; behind it the stub backend and, on demand, the real engines under
uvicorn as their Serve replicas would host them.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from support.backend import Backend
from support.gateway import Running, run_gateway, until, write_secrets

T = TypeVar("T")


class Product:
    """`running` lives in the thread's loop: reach it through `call`."""

    def __init__(self, loop: asyncio.AbstractEventLoop, running: Running) -> None:
        self._loop = loop
        self.running = running
        self.url = running.url

    def call(self, work: Coroutine[Any, Any, T], within: float = 30.0) -> T:
        """Runs a coroutine beside the gateway and waits for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(within)

    def do(self, work: Callable[[], T]) -> T:
        """Runs a function beside the gateway."""

        async def run() -> T:
            return work()

        return self.call(run())


@contextmanager
def product(
    folder: Path,
    options: Callable[[AsyncExitStack, Backend], Awaitable[dict[str, Any]]],
) -> Iterator[Product]:
    """`options` answers run_gateway's arguments; what it puts on the stack is closed after the gateway."""
    started: threading.Event = threading.Event()
    made: list[Product] = []
    failures: list[BaseException] = []
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        async with AsyncExitStack() as stack:
            backend = await Backend().start()
            stack.push_async_callback(backend.close)
            values = await options(stack, backend)
            made.append(Product(loop, await stack.enter_async_context(run_gateway(folder, backend, **values))))
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            loop.run_until_complete(main())
            loop.run_until_complete(loop.shutdown_asyncgens())
        except BaseException as error:  # handed to the thread that waits
            failures.append(error)
        finally:
            loop.close()
            started.set()

    thread = threading.Thread(target=run, name="product")
    thread.start()
    started.wait(120)
    try:
        if not made:
            raise RuntimeError("the product did not start") from (failures[0] if failures else None)
        yield made[0]
    finally:
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        assert not thread.is_alive(), "the product did not stop"
    if failures:
        raise failures[0]


@asynccontextmanager
async def serve_engine(engine: Any, model_id: str, folder: Path) -> Any:
    """An engine's application under uvicorn; answers the URL for a model's target."""
    from tollway_serving.engines.app import EngineApp, InternalToken

    app = EngineApp(engine, model_id, InternalToken(write_secrets(folder) / "internal-token"))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, access_log=False, ws="none")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server._serve())  # serve() would take the signals of the test process
    await until(lambda: server.started or task.done())
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await task
        close = getattr(engine, "close", None)
        if close is not None:
            await close()
