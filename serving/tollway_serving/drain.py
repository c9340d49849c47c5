"""`python -m tollway_serving.drain`: the preStop hook of Ray's worker pods (the operator's pod template names it).

Kubernetes ends a pod, for an upgrade of its node say, without asking Ray. This tells Ray that the node is leaving:
Serve then starts each of its replicas elsewhere, moves the traffic, and lets the old ones finish their requests. The
hook returns when nothing of Serve is left in the pod; the pod's grace period bounds it.
"""

import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

_LONGEST_S = 3_600  # what Ray is told; the pod's grace period ends sooner or later by itself
_WITHOUT_RAY_S = 60.0  # a head that is away for longer does not come back: the whole cluster is being removed
_POLL_S = 0.5
_RAY_START = b"/ray\0start\0"
_TITLES = (b"ray::ServeReplica", b"ray::HAProxyManager", b"ray::ProxyActor")


def main() -> int:
    address = os.environ.get("RAY_ADDRESS")
    if not address or not serving():
        return 0  # an idle node: Ray's autoscaler has drained it already
    node, patience = None, time.monotonic() + _WITHOUT_RAY_S
    while node is None:
        try:
            node = _drain(address)
        except Exception as error:  # whatever Ray raises: it doesn't answer now
            if time.monotonic() > patience:
                _say(f"Ray doesn't answer at {address}, ending without it: {error}")
                return 0
            time.sleep(_POLL_S)
    _say(f"Ray drains node {node}")
    patience = time.monotonic() + _WITHOUT_RAY_S
    while serving():
        time.sleep(_POLL_S)
        if _answers(address):
            patience = time.monotonic() + _WITHOUT_RAY_S
        elif time.monotonic() > patience:
            _say("Ray is gone, ending with its requests")
            return 0
    _say("drained")
    return 0


def serving(proc: Path = Path("/proc")) -> bool:
    """Whether a replica or a proxy of Serve runs in this pod. Actors say in their process title what they are."""
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes().startswith(_TITLES):
                    return True
            except OSError:
                continue  # it has just ended
    return False


def _drain(address: str) -> str:
    """Asks Ray to empty this pod's node; its id."""
    from ray.core.generated import autoscaler_pb2 as messages

    gcs, ours = _gcs(address), socket.gethostbyname(socket.gethostname())
    for identity, info in gcs.get_all_node_info(timeout=5).items():
        if info.node_manager_address == ours and info.state == 0:  # alive
            deadline = int((time.time() + _LONGEST_S) * 1000)
            reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")  # type: ignore[attr-defined] # generated
            accepted, why = gcs.drain_node(identity.hex(), reason, "the pod is being ended", deadline)
            if not accepted:
                raise RuntimeError(why)
            return str(identity.hex())
    raise RuntimeError(f"no living Ray node has the address {ours}")


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=2):
            return True
    except OSError:
        return False


def _gcs(address: str) -> Any:
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # a compiled module

    return GcsClient(address=address)


def _say(text: str) -> None:
    """A hook's own output is lost; the container's log is what its first process writes, `ray start`."""
    line = f"tollway drain: {text}\n"
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if _RAY_START in (entry / "cmdline").read_bytes():
                with (entry / "fd/2").open("w") as log:
                    log.write(line)
                return
        except OSError:
            continue
    sys.stderr.write(line)


if __name__ == "__main__":
    sys.exit(main())
