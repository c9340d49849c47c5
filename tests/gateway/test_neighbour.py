"""A gateway on a node whose proxy starts at the same time: no request may come before both are there."""

import asyncio
import socket

from support.gateway import model

from tollway_serving.contract.catalogue import Target
from tollway_serving.gateway.neighbour import wait_for_models


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Proxy:
    """As Serve's answers `/-/routes`."""

    def __init__(self) -> None:
        self.answer = (503, b"Route table is not populated yet.")
        self.asked = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        assert request.startswith(b"GET /-/routes ")
        status, body = self.answer
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()
        self.asked.set()


async def test_a_gateway_waits_for_its_nodes_proxy_and_for_each_model_that_is_ready() -> None:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    entries = [
        model(f"{base}/_models/ml.small/v1"),
        model(f"{base}/_models/ml.asleep/v1", "asleep", state="Asleep"),
        model("", "remote", target=Target(url="https://provider.example.com/v1", model="remote", internal=False)),
    ]
    waiting = asyncio.create_task(wait_for_models(entries, 30))
    proxy = Proxy()
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", port):
        answers = (200, b'{"/": "gateway"}'), (200, b"not json"), (200, b'["/_models/ml.small"]')
        for answer in (proxy.answer, *answers):
            proxy.answer = answer
            for _ in range(2):
                proxy.asked.clear()
                await proxy.asked.wait()
            assert not waiting.done()
        proxy.answer = (200, b'{"/": "gateway", "/_models/ml.small": "model-ml.small"}')
        await asyncio.wait_for(waiting, 5)


async def test_a_model_that_does_not_come_back_holds_up_no_gateway() -> None:
    await asyncio.wait_for(wait_for_models([model(f"http://127.0.0.1:{free_port()}/_models/ml.gone/v1")], 0.05), 5)
