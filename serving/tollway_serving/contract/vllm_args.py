"""vLLM's own settings that `engine.args` of a vllm model may have, named as on its command line. Data for `engines`.

A name that is not here is refused at apply, so that a typing mistake doesn't cost a start of minutes; hack/vllm-cpu
checks that the installed vLLM knows each of them.
"""

from collections.abc import Mapping

from tollway_serving.contract.args import Arg

QUANTIZATIONS = (
    *("awq", "awq_marlin", "gptq", "gptq_marlin", "fp8", "fp8_per_block", "compressed-tensors", "modelopt"),
    *("modelopt_fp4", "torchao", "mxfp4", "mxfp8", "quark", "experts_int8", "moe_wna16"),
)
DTYPES = ("auto", "half", "float16", "bfloat16", "float", "float32")


def _flag(help_: str) -> Arg:
    return Arg("flag", help_)


VLLM_ARGS: Mapping[str, Arg] = {
    # Size
    "max-model-len": Arg("integer", "tokens of a request, prompt and answer; limits.contextTokens by default", 1),
    "max-num-seqs": Arg("integer", "requests that a replica works on at once", 1, 65_536),
    "max-num-batched-tokens": Arg("integer", "tokens of one step", 1),
    "gpu-memory-utilization": Arg("number", "part of a GPU's memory that vLLM takes", 0, 1),
    "kv-cache-memory-bytes": Arg("integer", "bytes of a GPU for the KV cache, instead", 1, 2**53),
    "cpu-offload-gb": Arg("number", "GiB of weights kept in the pod's memory, for each GPU", 0, 4096),
    "block-size": Arg("integer", "tokens of a block of the KV cache", 1, 1024),
    # Weights
    "quantization": Arg("choice", "how the weights are quantised; vLLM reads it from them", choices=QUANTIZATIONS),
    "dtype": Arg("choice", "type of the numbers", choices=DTYPES),
    "kv-cache-dtype": Arg("choice", "of the KV cache", choices=("auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2")),
    "load-format": Arg("string", "form of the weights, such as safetensors or bitsandbytes"),
    "config-format": Arg("string", "form of the configuration: auto, hf or mistral"),
    "tokenizer-mode": Arg("string", "auto, slow or mistral"),
    "trust-remote-code": _flag("run the Python code that comes with the model"),
    "hf-overrides": Arg("json", "changes of the model's configuration"),
    "seed": Arg("integer", "for sampling", 0),
    # Parallelism beside resources
    "enable-expert-parallel": _flag("split a mixture of experts by expert"),
    "disable-custom-all-reduce": _flag("use NCCL only"),
    # Speed
    "enforce-eager": _flag("no CUDA graphs: less memory, slower"),
    "enable-prefix-caching": _flag("keep what prompts have in common"),
    "enable-chunked-prefill": _flag("cut long prompts"),
    "async-scheduling": _flag("schedule ahead"),
    "scheduling-policy": Arg("choice", "of waiting requests", choices=("fcfs", "priority")),
    "compilation-config": Arg("json", "vLLM's own"),
    "speculative-config": Arg("json", "a draft model, or n-grams"),
    # What it can do
    "runner": Arg("choice", "pooling: the model makes embeddings", choices=("auto", "generate", "pooling")),
    "convert": Arg("choice", "make another kind of the model", choices=("auto", "none", "embed", "classify")),
    "pooler-config": Arg("json", "of embeddings"),
    "generation-config": Arg("string", "auto (the model's defaults for sampling) or vllm"),
    "override-generation-config": Arg("json", "defaults for sampling"),
    "max-logprobs": Arg("integer", "the most top_logprobs", 0, 1000),
    "limit-mm-per-prompt": Arg("json", 'images and sounds of a prompt, such as {"image": 2}'),
    "mm-processor-kwargs": Arg("json", "of images and sounds"),
    # Adapters
    "max-loras": Arg("integer", "adapters in one step", 1, 1024),
    "max-lora-rank": Arg("integer", "the largest rank of an adapter; 64 here", 1, 512),
    "max-cpu-loras": Arg("integer", "adapters kept in the pod's memory", 1, 4096),
    # The server
    "chat-template": Arg("string", "a template in place of the tokenizer's"),
    "tool-call-parser": Arg("string", "how the model writes function calls, such as hermes: gives the model Tools"),
    "reasoning-parser": Arg("string", "how it writes its reasoning, such as deepseek_r1: gives the model Reasoning"),
    "default-chat-template-kwargs": Arg("json", "of the template"),
}

OWNED: Mapping[str, str] = {
    "model": "source.uri",
    "tokenizer": "source.uri",
    "served-model-name": "modelId",
    "revision": "source.uri (hf://ORG/NAME@REVISION)",
    "download-dir": "source.uri",
    "hf-token": "source.secretRef",
    "tensor-parallel-size": "resources.gpus",
    "pipeline-parallel-size": "resources.pods",
    "data-parallel-size": "autoscaling.minReplicas and maxReplicas",
    "distributed-executor-backend": "resources",
    "enable-lora": "source.adapterOf of the adapters",
    "lora-modules": "source.adapterOf of the adapters",
    "enable-auto-tool-choice": "args.tool-call-parser",
    "host": "Tollway",
    "port": "Tollway",
    "api-key": "Tollway",
    "root-path": "Tollway",
    "middleware": "Tollway",
    "enable-log-requests": "Tollway: nobody's prompt stands in a log",
}
"""What decides instead."""
