"""What checking a request costs: CPU and time to first token of the gateway, beside the same one without the checks.

    python tests/bench/validation.py [--requests 600] [--rounds 5]

Both are whole (keys, ledger, a model server that answers at once: see `gateway.py`) and are asked in turns, one request
at a time. The one without takes every body as it is parsed: no look for doubled names, no types, ranges or unknown
names. What is counted of a prompt for its hold stays in both.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import uvicorn

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE.parents[1])]

import gateway as bench  # noqa: E402  # tests/bench/gateway.py


def without_checks() -> None:
    """Takes the checks out of this process."""
    import orjson

    from tollway_serving.gateway.call import Call
    from tollway_serving.gateway.parameters import Table

    async def parsed(self: Call, limit: int, timeout_s: float) -> Any:
        return orjson.loads(await self.body(limit, timeout_s))

    Call.json = parsed  # type: ignore[method-assign]  # that is the point
    Table.validate = lambda self, body, ignore: (body, ())  # type: ignore[method-assign]  # likewise


def bodies() -> dict[str, dict[str, Any]]:
    turn = [{"role": "user", "content": bench.PROMPT}, {"role": "assistant", "content": "The sea, the sea. " * 20}]
    fields = {f"field{n}": {"type": "string", "description": "A field of the thing."} for n in range(12)}
    schema = {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": f"tool{n}", "parameters": schema}} for n in range(10)]
    parts = [{"type": "text", "text": "word " * 20} for _ in range(1000)]
    return {
        "one message": {"messages": turn[:1]},
        "40 messages, 10 tools, sampling": {
            "messages": [*turn * 20, turn[0]],
            "tools": tools,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 1,
            "stop": ["END"],
            "user": "me",
            "metadata": {"a": "b"},
        },
        "1,000 parts": {"messages": [{"role": "user", "content": parts}]},
        "one message of 1 MB": {"messages": [{"role": "user", "content": "word " * 200_000}]},
    }


async def first_tokens(port: int, body: dict[str, Any], requests: int) -> list[float]:
    """Seconds from the request's first byte to the first chunk, one request after the other on one connection."""
    from support.gateway import KEY

    raw = json.dumps({**body, "model": "wide", "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    request = head.encode() + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(raw) + raw
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    times = []
    for _ in range(requests):
        began = time.perf_counter()
        writer.write(request)
        status = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in status.split(b"\r\n", 1)[0]:
            raise RuntimeError((await reader.read(500)).decode(errors="replace"))
        await reader.readuntil(b"data: ")
        times.append(time.perf_counter() - began)
        await reader.readuntil(b"0\r\n\r\n")
    writer.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", nargs="*", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        kind, *rest = options.serve
        if kind == "without":
            without_checks()
        run = (
            bench.serve_model(int(rest[0]))
            if kind == "model"
            else bench.serve_gateway(rest[0], int(rest[1]), *rest[2:])
        )
        with asyncio.Runner(loop_factory=uvicorn.Config("").get_loop_factory()) as runner:
            runner.run(run)
        return
    with tempfile.TemporaryDirectory() as folder:
        model_port, with_port, without_port = (bench.free_port() for _ in range(3))
        backend = f"http://127.0.0.1:{model_port}/v1"
        me = [sys.executable, str(HERE), "--serve"]
        ports = {"with": with_port, "without": without_port}
        processes = {"model": subprocess.Popen([*me, "model", str(model_port)])}
        for name, port in ports.items():
            (Path(folder) / name).mkdir()
            place = f"{folder}/{name}"
            processes[name] = subprocess.Popen([*me, name, backend, str(port), place, f"{place}/log"])
        try:
            for port in (model_port, *ports.values()):
                bench.wait_for(port)
            measure(options, {name: (processes[name].pid, port) for name, port in ports.items()})
        finally:
            for process in processes.values():
                process.terminate()
            for process in processes.values():
                process.wait()


def measure(options: argparse.Namespace, gateways: dict[str, tuple[int, int]]) -> None:
    print(f"{'body':34}{'KB':>7}{'checks':>9}{'cpu us':>9}{'loop us':>9}{'first token us':>16}")
    for title, body in bodies().items():
        found: dict[str, list[tuple[float, float, float]]] = {}
        for _, port in gateways.values():
            asyncio.run(first_tokens(port, body, 50))
        for _ in range(options.rounds):
            for name, (pid, port) in gateways.items():
                before, loop_before = bench.cpu(pid), bench.main_thread_cpu(pid)
                times = asyncio.run(first_tokens(port, body, options.requests))
                cpu = (bench.cpu(pid) - before) / options.requests * 1e6
                loop = (bench.main_thread_cpu(pid) - loop_before) / options.requests * 1e6
                found.setdefault(name, []).append((cpu, loop, statistics.median(times) * 1e6))
        size = len(json.dumps(body)) / 1000
        for name, rows in found.items():
            cpu, loop, first = (statistics.median(values) for values in zip(*rows, strict=True))
            print(f"{title:34}{size:>7.1f}{name:>9}{cpu:>9.0f}{loop:>9.0f}{first:>16.0f}", flush=True)


if __name__ == "__main__":
    main()
