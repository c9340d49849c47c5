"""A TCP proxy between a ledger and PostgreSQL that can lose, cut, refuse and lead elsewhere: for tests of faults."""

import asyncio
import contextlib
from collections.abc import Callable


class Proxy:
    """`cut_after` closes a connection once what the client sent has reached the server, so that the answer is lost;
    `silent` swallows everything; `refusing` lets nobody in. `port` may change: connections from then on go there."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cut_after: Callable[[bytes], bool] = lambda _: False
        self.silent = False
        self.refusing = False
        self.cuts = 0
        self._ends: set[asyncio.Event] = set()
        self._generation = 0

    async def start(self, url: str) -> str:
        """`url` with the proxy's port instead of the server's."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return url.replace(f":{self.port}/", f":{self._server.sockets[0].getsockname()[1]}/")

    async def close(self) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Ends every connection that there is."""
        for end in self._ends:
            end.set()

    def leave_behind(self) -> None:
        """What is connected hears nothing any more, as when a host is gone; whoever comes now is served."""
        self._generation += 1
        self.silent = False

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        end = asyncio.Event()
        self._ends.add(end)
        up_writer = None
        tasks: list[asyncio.Task[None]] = []
        generation = self._generation

        def lost() -> bool:
            return self.silent or generation != self._generation

        try:
            if self.refusing:
                return
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.port)
            tasks = [
                asyncio.create_task(self._pump(reader, up_writer, end, lost, True)),
                asyncio.create_task(self._pump(up_reader, writer, end, lost, False)),
            ]
            await end.wait()
        except ConnectionError:
            pass
        finally:
            self._ends.discard(end)
            for task in tasks:
                task.cancel()
            writer.close()
            if up_writer is not None:
                up_writer.close()

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        end: asyncio.Event,
        lost: Callable[[], bool],
        upwards: bool,
    ) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65536):
                if lost():
                    continue
                cut = upwards and self.cut_after(data)
                sink.write(data)
                await sink.drain()
                if cut:
                    self.cuts += 1
                    await asyncio.sleep(0.1)  # time for the server to carry it out; nothing tells us
                    break
        if upwards or not lost():
            end.set()
