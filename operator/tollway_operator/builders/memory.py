"""Whether a model fits its GPUs: said at apply, before a pod starts and a load of minutes ends in an error.

Called by `checks`. A lower bound on purpose: what is refused can't run; what is accepted may still be tight. The parts
are the weights and the KV cache of one request of full length, without which vLLM doesn't start; more requests at once
wait for room, but run.
"""

import re
from collections.abc import Mapping

from tollway_operator.observed import Problem
from tollway_operator.resources import ModelDeployment

_MIB: Mapping[str, int] = {
    "T4": 15_360,
    "L4": 23_034,
    "A10G": 23_028,
    "A10": 23_028,
    "A16": 15_356,
    "A2": 15_356,
    "A30": 24_576,
    "A40": 46_068,
    "L40S": 46_068,
    "L40": 46_068,
    "L20": 46_068,
    "A6000": 49_140,
    "A5000": 24_564,
    "A4000": 16_376,
    "A100": 40_960,  # the smaller one, where the name doesn't say
    "A800": 81_920,
    "H20": 97_871,
    "H100": 81_559,
    "H800": 81_559,
    "H200": 143_771,
    "GH200": 97_871,
    "B200": 183_359,
    "B300": 275_040,
    "V100": 16_384,
    "P100": 16_280,
    "RTX-3090": 24_576,
    "RTX-4090": 24_564,
    "RTX-5090": 32_607,
}
"""As nodes say it (nvidia.com/gpu.memory), by what a product's name has in it."""

_BITS: Mapping[str, float] = {
    **dict.fromkeys(("awq", "awq_marlin", "gptq", "gptq_marlin", "mxfp4", "modelopt_fp4", "moe_wna16"), 4),
    **dict.fromkeys(("fp8", "fp8_per_block", "modelopt", "mxfp8", "experts_int8"), 8),
    **dict.fromkeys(("compressed-tensors", "torchao", "quark"), 4),  # or more
}
_NAMED_BITS = (
    (re.compile("int8|w8a8|w8a16|fp8|8bit|q8", re.IGNORECASE), 8),
    (re.compile("awq|gptq|int4|w4a16|4bit|nvfp4|mxfp4|bnb|gguf|q[2-6]_|gpt-oss", re.IGNORECASE), 4),
)
_COUNT = re.compile(r"(?:([0-9]+)x)?([0-9]+(?:[.][0-9]+)?) ?([BbMmTt])(?![A-Za-z])")
_SCALE = {"M": 1e6, "B": 1e9, "T": 1e12}
_UTILISATION = 0.9  # vLLM's own default
_LARGEST_KV = 256 * 1024  # bytes a token, of the largest models


def gpu_mib(accelerator: str | None, nodes: Mapping[str, int]) -> int | None:
    """Memory of one GPU; `nodes` is what nodes say of theirs, by accelerator."""
    if accelerator is None:
        return None
    if accelerator in nodes:
        return nodes[accelerator]
    name = accelerator.upper().replace(" ", "-")
    sizes = re.findall(r"([0-9]+)GB", name)
    if sizes and "GH200" not in name:  # (a part of a GPU names its own size last: ...-80GB-MIG-1g.10gb)
        return int(sizes[-1]) * 1024
    parts = re.split("[-_]", name)
    found = [mib for key, mib in _MIB.items() if key in parts or ("-" in key and key in name)]
    return found[0] if found else None


def parameters(model: ModelDeployment) -> float | None:
    """How many the model has, by info.parameters or else by its name."""
    source = model.spec.source.uri if model.spec.source else None
    for text in (model.spec.info.parameters, (source or "").partition("://")[2].partition("@")[0]):
        counts = [
            int(times or 1) * float(number) * _SCALE[unit.upper()] for times, number, unit in _COUNT.findall(text or "")
        ]
        if counts:
            return max(counts)  # of 30B-A3B the whole
    return None


def weight_bits(model: ModelDeployment) -> float:
    args = model.spec.engine.args
    written = _BITS.get(str(args.get("quantization")))
    if written is not None:
        return written
    if args.get("dtype") in ("float", "float32"):
        return 32
    source = model.spec.source.uri if model.spec.source else ""
    return next((bits for pattern, bits in _NAMED_BITS if pattern.search(source or "")), 16)


def kv_bytes(count: float, context: int, model: ModelDeployment) -> float:
    """Of one request: models with grouped heads have 20 to 300 KiB a token, growing slower than the model."""
    a_token: float = min(16 * 1024 * (count / 1e9) ** 0.6, _LARGEST_KV)
    return context * a_token / (2 if str(model.spec.engine.args.get("kv-cache-dtype")).startswith("fp8") else 1)


def fit(model: ModelDeployment, context: int, nodes: Mapping[str, int]) -> tuple[Problem | None, str]:
    """Why it can't run, and a note if that could not be found out."""
    pod = model.spec.pod
    if not pod.gpus:
        return None, ""
    mib, count = gpu_mib(pod.accelerator, nodes), parameters(model)
    lacks = [
        what
        for what, known in (
            ("resources.accelerator, one whose memory is known", mib),
            ("info.parameters, such as 8.2B", count),
        )
        if known is None
    ]
    if mib is None or count is None:
        return None, f"whether it fits the GPUs was not checked; that needs {' and '.join(lacks)}"
    args = model.spec.engine.args
    bits = weight_bits(model)
    weights, kv = count * bits / 8, kv_bytes(count, context, model)
    gpus = pod.gpus * pod.pods
    share = float(args.get("gpu-memory-utilization", _UTILISATION))
    room = gpus * mib * 2**20
    offloaded = gpus * float(args.get("cpu-offload-gb", 0)) * 2**30
    if weights + kv - offloaded <= room * share:
        return None, ""
    message = (
        f"it needs about {_gb(weights + kv)} of GPU memory: {_gb(weights)} of weights ({count / 1e9:g}B parameters of "
        f"{bits:g} bits) and {_gb(kv)} of KV cache for one request of {context} tokens; {gpus} x {pod.accelerator} "
        f"have {_gb(room)}, of which vLLM takes {share:.0%} ({_gb(room * share)})"
    )
    return Problem("DoesNotFit", message), ""


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
