"""What the gateway costs: CPU of its process a request and a relayed chunk, beside the floor, in one interleaved run.

    python tests/bench/gateway.py [--requests 3000] [--connections 1,32] [--chunks 1000] [--rounds 3]
        [--stores sqlite,postgresql]

A gateway for each store; PostgreSQL is a server of its own, with fsync, whose CPU is not counted. Beside them a model
server that answers at once, the floor, and this process, which asks. CPU is a process's own (user and system), so that
a busy machine changes the wall-clock figures more than these. Reads /proc.
"""

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))

from support.gateway import KEY  # noqa: E402
from support.postgres import server  # noqa: E402

TICKS = os.sysconf("SC_CLK_TCK")
TOKENS = 16
PACED, PAUSE_MS, MANY = 300, 20, 128
REFUSED: list[bytes] = []
PROMPT = "Write a short poem about the sea, and make it rhyme. " * 8


# --- the model server -----------------------------------------------------------------------------------------------


class Model(asyncio.Protocol):
    """Answers any POST at once: TOKENS tokens, or as many as the prompt's first word says, and if the second one is a
    number, too, with so many milliseconds before each, as a model does. One write an event."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._buffer = b""
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._tasks: set[asyncio.Task[None]] = set()

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        task = asyncio.ensure_future(self._answer(json.loads(rest[:length])))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, body: dict[str, Any]) -> None:
        first, second = str(body["messages"][0]["content"]).split(" ", 2)[:2]
        tokens = int(first) if first.isdigit() else TOKENS
        pause_s = int(second) / 1000 if second.isdigit() else 0
        if not body.get("stream"):
            answer = json.dumps(
                {
                    "id": "chatcmpl-1",
                    "object": "chat.completion",
                    "created": 1_700_000_000,
                    "model": "m",
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": "word " * tokens},
                            "finish_reason": "stop",
                            "logprobs": None,
                        }
                    ],
                    "usage": {"prompt_tokens": 90, "completion_tokens": tokens, "total_tokens": 90 + tokens},
                }
            ).encode()
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(answer)
            self._transport.write(head + answer)
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        usage = bool((body.get("stream_options") or {}).get("continuous_usage_stats"))
        for k in range(tokens + 1):
            delta = {"content": "word "} if k < tokens else {}
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None if k < tokens else "stop"}
            event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m"}
            event["choices"] = [choice]  # type: ignore[assignment]  # the others are plain values
            if usage:
                count = min(k + 1, tokens)
                event["usage"] = {"prompt_tokens": 90, "completion_tokens": count, "total_tokens": 90 + count}  # type: ignore[assignment]  # as above
            data = b"data: " + json.dumps(event).encode() + b"\n\n"
            if pause_s:
                await asyncio.sleep(pause_s)
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
            await self._can_write.wait()
        self._transport.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


async def serve_model(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Model, "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


# --- the gateway ----------------------------------------------------------------------------------------------------


async def serve_gateway(backend: str, port: int, folder: str, log: str, database: str = "") -> None:
    from support.gateway import key, model, plan, write_secrets

    from tollway_serving.contract.catalogue import Catalogue, Limits, Quota, Target
    from tollway_serving.contract.engines import ENGINES
    from tollway_serving.gateway.app import Gateway
    from tollway_serving.gateway.settings import Settings
    from tollway_serving.ledger.publish import open_publisher
    from tollway_serving.ledger.store import open_ledger

    database = database or f"sqlite:///{folder}/ledger.db"
    publisher = open_publisher(database)
    await publisher.start()
    limits = Limits(
        requests_per_minute=10_000_000,
        tokens_per_minute=10**10,
        credits_monthly_micro=10**15,
        quotas=(Quota(name="tokens", meter="Tokens", limit=10**12), Quota(name="all", meter="Requests", limit=10**10)),
    )
    plain = Target(url=backend, model="m", internal=False, continuous_usage=False)
    everything = {
        "capabilities": ("Tools", "StructuredOutput", "Logprobs"),
        "parameters": ENGINES["remote"].parameters,
        "context_tokens": 10_000_000,
    }
    await publisher.publish(
        Catalogue(
            models=(
                model(backend, queued_requests=10_000, context_tokens=100_000, output_tokens=8192),
                model(backend, "plain", target=plain, queued_requests=10_000),
                model(backend, "wide", **everything, queued_requests=10_000),  # for `validation.py`
            ),
            plans=(plan(model_ids=("small", "plain", "wide"), limits=limits),),
            keys=(key(),),
        )
    )
    await publisher.close()
    settings = Settings.load({"database_url": database, "secrets_dir": write_secrets(Path(folder) / "secrets")}, {})
    gateway = Gateway(settings, open_ledger)
    sys.stderr = open(log, "w")  # noqa: SIM115, ASYNC230  # for the life of the process
    config = uvicorn.Config(gateway, host="127.0.0.1", port=port, log_level="error", access_log=False, backlog=1024)
    await uvicorn.Server(config).serve()


# --- asking ---------------------------------------------------------------------------------------------------------


class Asker(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it has its answer. `firsts` are the times until the first
    token of a stream."""

    def __init__(
        self, request: bytes, left: list[int], done: asyncio.Event, times: list[float], firsts: list[float]
    ) -> None:
        self._request = request
        self._firsts = firsts
        self._has_first = False
        self._left = left
        self._done = done
        self._times = times
        self._data = b""
        self._tail = b""
        self._asked = 0.0
        self._need = -1
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._ask()

    def _ask(self) -> None:
        if self._left[0] <= 0:
            self._transport.close()
            self._left[1] -= 1
            if self._left[1] == 0:
                self._done.set()
            return
        self._left[0] -= 1
        self._data, self._tail, self._need, self._head = b"", b"", -1, b""
        self._has_first = False
        self._asked = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if not self._has_first and b"data: {" in data:
            self._has_first = True
            self._firsts.append(time.perf_counter() - self._asked)
        if self._need < 0:
            self._data += data
            head, found, rest = self._data.partition(b"\r\n\r\n")
            if not found:
                return
            if b" 200 " not in head.split(b"\r\n", 1)[0]:
                # A machine so busy that the ledger did not answer in time: the figures say little, but say so.
                REFUSED.append(rest[:300])
            lower = head.lower()
            if b"content-length:" in lower:
                self._need = int(lower.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]) - len(rest)
                self._head = b"length"
            else:
                self._need = 0
                self._tail = rest[-5:]
        elif self._head:
            self._need -= len(data)
        else:
            self._tail = (self._tail + data)[-5:]
        if (self._head and self._need <= 0) or (not self._head and self._tail == b"0\r\n\r\n"):
            self._times.append(time.perf_counter() - self._asked)
            self._ask()

    def connection_lost(self, error: Exception | None) -> None:
        if self._left[0] > 0:
            raise RuntimeError("the connection broke")


async def ask(
    port: int, body: dict[str, Any], requests: int, connections: int, key: str = KEY
) -> tuple[list[float], list[float]]:
    """Seconds until each whole answer, and until the first token of each stream."""
    raw = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n"
    request = head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw
    done = asyncio.Event()
    times: list[float] = []
    firsts: list[float] = []
    left = [requests, connections]
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Asker(request, left, done, times, firsts), "127.0.0.1", port)
    await asyncio.wait_for(done.wait(), 300)
    return times, firsts


def cpu(pid: int) -> float:
    """Seconds of user and system time, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def main_thread_cpu(pid: int) -> float:
    """The same of the main thread alone: the event loop without the ledger's writer."""
    fields = Path(f"/proc/{pid}/task/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError("did not start")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--requests", type=int, default=3000)
    parser.add_argument("--connections", default="1,32")
    parser.add_argument("--chunks", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)


@dataclass(frozen=True)
class Case:
    """One line of the table: who is asked for what. `beside` is another process that works for it."""

    name: str
    who: str
    port: int
    stream: bool
    model: str | None = "plain"
    beside: str | None = None

    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}]}
        return body | ({"model": self.model} if self.model else {}) | ({"stream": True} if self.stream else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_options(parser)
    parser.add_argument("--stores", default="sqlite")
    parser.add_argument("--serve", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, *rest = options.serve
        run = serve_model(int(rest[0])) if kind == "model" else serve_gateway(rest[0], int(rest[1]), *rest[2:])
        # The loop that uvicorn takes for the floor, and Ray for a replica: uvloop where there is one.
        with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
            runner.run(run)
        return
    stores = options.stores.split(",")
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        model_port, floor_port = free_port(), free_port()
        backend = f"http://127.0.0.1:{model_port}/v1"
        me = [sys.executable, str(HERE), "--serve"]
        floor = [sys.executable, str(HERE.with_name("floor.py")), backend, str(floor_port)]
        commands = {"model": ([*me, "model", str(model_port)], model_port), "floor": (floor, floor_port)}
        cases = [
            Case("floor, whole", "floor", floor_port, stream=False),
            Case(f"floor, stream of {TOKENS}", "floor", floor_port, stream=True),
        ]
        for store in stores:
            database, port = "", free_port()
            if store == "postgresql":
                database = stack.enter_context(server(fsync=True)).create_database("bench")
            own = Path(folder, store)
            own.mkdir()
            commands[store] = ([*me, "gateway", backend, str(port), str(own), f"{own}/log", database], port)
            cases += [
                Case(f"{store}, whole, passed through", store, port, stream=False),
                Case(f"{store}, whole, collected from {TOKENS}", store, port, stream=False, model=None),
                Case(f"{store}, stream of {TOKENS}", store, port, stream=True, model=None),
            ]
        processes = {name: subprocess.Popen(command) for name, (command, _) in commands.items()}
        try:
            for _, port in commands.values():
                wait_for(port)
            measure(options, {name: process.pid for name, process in processes.items()}, cases)
        finally:
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                process.wait()


def measure(options: argparse.Namespace, pids: dict[str, int], cases: list[Case], key: str = KEY) -> None:
    columns = (
        f"{'conn':>5}{'cpu us':>9}{'loop us':>9}{'beside us':>10}{'first ms':>9}{'p50 ms':>9}{'p99 ms':>9}{'req/s':>9}"
    )
    print(f"{'CPU of the process, us a request':44}{columns}")
    for connections in (int(c) for c in options.connections.split(",")):
        results: dict[str, list[tuple[float, ...]]] = {}
        for case in cases:
            asyncio.run(ask(case.port, case.body(), 200, connections, key))
        for _ in range(options.rounds):
            for case in cases:
                requests = options.requests if connections > 1 else options.requests // 3
                pid, other = pids[case.who], pids[case.beside] if case.beside else None
                before = (cpu(pid), main_thread_cpu(pid), cpu(other) if other else 0.0)
                began = time.perf_counter()
                times, firsts = asyncio.run(ask(case.port, case.body(), requests, connections, key))
                took = time.perf_counter() - began
                after = (cpu(pid), main_thread_cpu(pid), cpu(other) if other else 0.0)
                used = [(b - a) / requests * 1e6 for a, b in zip(before, after, strict=True)]
                p50, p99 = statistics.median(times) * 1000, statistics.quantiles(times, n=100)[98] * 1000
                first = statistics.median(firsts) * 1000 if firsts else 0.0
                results.setdefault(case.name, []).append((*used, first, p50, p99, requests / took))
        for name, rows in results.items():
            used_, loop, beside, *ms, rate = (statistics.median(values) for values in zip(*rows, strict=True))
            figures = f"{used_:>9.0f}{loop:>9.0f}{beside:>10.0f}{''.join(f'{each:>9.2f}' for each in ms)}{rate:>9.0f}"
            print(f"{name:44}{connections:>5}{figures}", flush=True)
    chunks(options, pids, cases, key)
    if REFUSED:
        print(f"{len(REFUSED)} requests were refused; the last one: {REFUSED[-1].decode(errors='replace')}")


def chunks(options: argparse.Namespace, pids: dict[str, int], cases: list[Case], key: str) -> None:
    """First as fast as a model can send them, so that many arrive together (a floor looks at none of them); then as
    models do, each by itself."""
    print(f"{'CPU of the process, us a relayed chunk':44}{'conn':>5}{'cpu us':>9}")
    for connections, streams, number, prompt in (
        (1, 20, options.chunks, f"{options.chunks} words please"),
        (8, 20, options.chunks, f"{options.chunks} words please"),
        (MANY, MANY, PACED, f"{PACED} {PAUSE_MS} words please"),
    ):
        found: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for case in cases:
                if case.stream:
                    body = case.body() | {"messages": [{"role": "user", "content": prompt}], "max_tokens": 4096}
                    before = cpu(pids[case.who])
                    asyncio.run(ask(case.port, body, streams, connections, key))
                    found.setdefault(case.who, []).append((cpu(pids[case.who]) - before) / streams / number * 1e6)
        for name, values in found.items():
            paced = f", one every {PAUSE_MS} ms" if connections == MANY else ""
            print(f"{name + paced:44}{connections:>5}{statistics.median(values):>9.2f}")


if __name__ == "__main__":
    main()
