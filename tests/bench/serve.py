"""What the gateway costs under Ray Serve, behind HAProxy, beside the floor: `gateway.py` on a real `tollway up`.

    python tests/bench/serve.py [--requests 2000] [--connections 32] [--chunks 1000] [--rounds 3]
        [--store postgresql]

The gateway replica's CPU is counted as in `gateway.py`; HAProxy's is a line of its own. The floor is bare. The model is
the same server outside of Ray, by `engine: remote`. SQLite, or PostgreSQL (a server of its own with fsync).
"""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.insert(0, str(HERE.parents[1]))
sys.path.insert(0, str(HERE.parent))

from gateway import Case, add_options, free_port, measure, wait_for  # noqa: E402
from support.postgres import server  # noqa: E402
from support.up import Up, key  # noqa: E402

from tollway_cli.guardian import descendants  # noqa: E402

SETTLED_S = 8

PLAN = """
    apiVersion: tollway.dev/v1alpha1
    kind: Plan
    metadata: {name: free}
    spec:
      credits: {monthly: 1000000}
      limits: {requestsPerMinute: 10000000, tokensPerMinute: 1000000000}
      quotas: [{name: tokens, meter: Tokens, limit: 1000000000}, {name: all, meter: Requests, limit: 10000000}]
      defaultModels: [{endpoint: ChatCompletions, modelId: plain}]
"""

MODEL = """
    apiVersion: tollway.dev/v1alpha1
    kind: ModelDeployment
    metadata: {{name: plain}}
    spec:
      engine: {{name: remote}}
      remote: {{url: "{url}"}}
      limits: {{contextTokens: 100000, outputTokens: 8192, queuedRequests: 1000}}
      pricing: {{perMillionInputTokens: "0.10", perMillionOutputTokens: "0.40"}}
"""


def process(up: Up, words: bytes) -> int:
    """The one process of this `up` whose command line has these words."""
    assert up.process is not None
    found = []
    for pid in descendants(up.process.pid):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if words in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0", 1)[0]:
                found.append(pid)
    if len(found) != 1:
        raise RuntimeError(f"{len(found)} processes are called {words!r}")
    return found[0]


def settled(up: Up, words: bytes) -> int:
    """The same once it stays: Serve replaces HAProxy when its backends change, also just after the start."""
    known, began = 0, time.monotonic()
    since = began
    while time.monotonic() - since < SETTLED_S:
        if since - began > 60:
            return process(up, words)
        time.sleep(0.5)
        with contextlib.suppress(RuntimeError):
            if (pid := process(up, words)) == known:
                continue
            known = pid
        since = time.monotonic()
    return known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add_options(parser)
    parser.add_argument("--store", choices=("sqlite", "postgresql"), default="sqlite")
    options = parser.parse_args()
    model_port, floor_port = free_port(), free_port()
    backend = f"http://127.0.0.1:{model_port}/v1"
    gateway = str(HERE.with_name("gateway.py"))
    servers = [
        subprocess.Popen([sys.executable, gateway, "--serve", "model", str(model_port)]),
        subprocess.Popen([sys.executable, str(HERE.with_name("floor.py")), backend, str(floor_port)]),
    ]
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        database: tuple[str, ...] = ()
        if options.store == "postgresql":
            database = ("--database-url", stack.enter_context(server(fsync=True)).create_database("bench"))
        up = Up(Path(folder))
        try:
            for port in (model_port, floor_port):
                wait_for(port)
            up.write("plan.yaml", PLAN)
            up.write("model.yaml", MODEL.format(url=backend))
            up.write("key.yaml", key("me"))
            up.start(*database)
            up.ready()
            pids = {
                "floor": servers[1].pid,
                "gateway": process(up, b"ServeReplica:gateway"),
                "haproxy": settled(up, b"haproxy"),
            }
            cases = [
                Case("floor, whole", "floor", floor_port, stream=False),
                Case("gateway under Serve, whole", "gateway", up.port, stream=False, beside="haproxy"),
                Case("floor, stream of 16", "floor", floor_port, stream=True),
                Case("gateway under Serve, stream of 16", "gateway", up.port, stream=True, beside="haproxy"),
            ]
            measure(options, pids, cases, up.key)
        finally:
            up.close()
            for other in servers:
                other.terminate()
                other.wait()


if __name__ == "__main__":
    main()
