"""vLLM's arguments for one replica, out of a ModelDeployment's and of what Tollway decides. Pure; called by `vllm`."""

from typing import Any

from tollway_serving.contract.vllm_args import VLLM_ARGS
from tollway_serving.engines.protocol import EngineArgs

_LORA_RANK = 64  # adapters of larger ranks need args.max-lora-rank


def engine_kwargs(args: EngineArgs) -> dict[str, Any]:
    """vLLM's own arguments, out of the object's and of what Tollway decides."""
    unknown = [name for name in args.args if name not in VLLM_ARGS]
    if unknown:  # refused at apply: an operator of another version wrote this
        raise ValueError(f"engine.args.{unknown[0]} is not known to this version of the engine")
    found = {name.replace("-", "_"): VLLM_ARGS[name].meaning(value) for name, value in args.args.items()}
    found.setdefault("max_model_len", args.context_tokens)
    found["max_num_seqs"] = args.slots
    found["tensor_parallel_size"] = max(1, args.gpus)
    found["pipeline_parallel_size"] = args.pods
    if "tool_call_parser" in found:
        found["enable_auto_tool_choice"] = True
    if args.adapters:
        found["enable_lora"] = True
        found.setdefault("max_lora_rank", _LORA_RANK)
    return found
