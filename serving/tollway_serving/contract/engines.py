"""What each engine can do, as data: the operator fills a model's catalogue entry from it and checks `engine.args`.

No engine is imported here. An engine's program lives in `tollway_serving.engines` (one file each) and is named by
`import_path`; the operator only passes that name to Ray Serve.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tollway_serving.contract.args import Arg
from tollway_serving.contract.catalogue import Capability, Endpoint, TokenBound
from tollway_serving.contract.sources import SCHEMES
from tollway_serving.contract.vllm_args import OWNED, VLLM_ARGS


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """`parameters` are the request parameters, by endpoint, that the engine carries out beside the universal ones
    (model, messages/prompt/input, stream, stream_options, max_tokens, max_completion_tokens)."""

    import_path: str | None  # None: no application of ours (remote, custom container)
    endpoints: tuple[Endpoint, ...]
    more_endpoints: tuple[Endpoint, ...] = ()  # those that an object may name, but has not by default
    capabilities: tuple[Capability, ...] = ()
    more_capabilities: tuple[Capability, ...] = ()
    capability_args: Mapping[Capability, str] = field(default_factory=dict)  # there exactly where this arg is written
    parameters: tuple[str, ...] = ()
    context_tokens: int = 4096
    output_tokens: int = 1024
    slots: int = 8  # requests that one replica works on at once: max_ongoing_requests
    inputs_per_call: int = 256  # texts of one call for embeddings: reading the answer keeps no other request waiting
    token_bound: TokenBound = field(default_factory=TokenBound)
    sources: tuple[str, ...] = ()  # URI schemes that it loads
    needs_source: bool = True  # where `sources` has any
    args: Mapping[str, Arg] = field(default_factory=dict)
    needs_args: tuple[str, ...] = ()
    owned_args: Mapping[str, str] = field(default_factory=dict)  # refused: the field that decides instead
    free_args: bool = False  # unknown args are passed through (custom)
    slots_arg: str | None = None  # the arg that `slots` is the default of
    context_arg: str | None = None  # the arg that means limits.contextTokens
    workers: bool = False  # it starts a worker for each GPU, on several pods if need be: a placement group
    adapters: bool = False  # other models' `source.adapterOf` may name one of it
    continuous_usage: bool = True  # counts tokens in each chunk when asked to


SAMPLING = (
    "temperature",
    "top_p",
    "n",
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
)

TOOLS = ("tools", "tool_choice", "parallel_tool_calls")

ENGINES: dict[str, EngineFacts] = {
    "llamacpp": EngineFacts(
        import_path="tollway_serving.engines.llamacpp:build",
        endpoints=("ChatCompletions", "Completions"),
        capabilities=("StructuredOutput", "Logprobs", "Tools"),
        parameters=(*SAMPLING, "logprobs", "top_logprobs", "response_format", *TOOLS, "echo", "best_of"),
        context_tokens=2048,
        output_tokens=1024,
        slots=4,
        token_bound=TokenBound(fixed=64),  # a chat template may bring a system message of its own
        sources=SCHEMES,
        args={
            "threads": Arg("integer", "CPU threads; by default fewer than the machine has cores", 1, 512),
            "parallel": Arg("integer", "requests worked on at once; memory grows with it", 1, 64),
        },
        slots_arg="parallel",
    ),
    "minilm": EngineFacts(
        import_path="tollway_serving.engines.minilm:build",
        endpoints=("Embeddings",),
        parameters=("encoding_format", "dimensions"),
        context_tokens=512,
        output_tokens=1,  # none, but a model's entry wants one
        slots=8,
        inputs_per_call=64,  # a second of work: a larger batch neither times out nor keeps others waiting
        sources=("package",),
        args={"threads": Arg("integer", "CPU threads; by default fewer than the machine has cores", 1, 512)},
    ),
    "vllm": EngineFacts(
        import_path="tollway_serving.engines.vllm:build",
        endpoints=("ChatCompletions", "Completions"),
        more_endpoints=("Embeddings",),
        capabilities=("StructuredOutput", "Logprobs"),
        more_capabilities=("Tools", "Reasoning", "ImageInput", "AudioInput"),
        capability_args={"Tools": "tool-call-parser", "Reasoning": "reasoning-parser"},
        parameters=(
            *(*SAMPLING, "logprobs", "top_logprobs", "response_format", *TOOLS, "reasoning_effort"),
            *("echo", "encoding_format", "dimensions"),
        ),
        context_tokens=8192,
        output_tokens=4096,
        slots=128,
        token_bound=TokenBound(fixed=512),  # templates of large models bring long system messages of their own
        sources=SCHEMES,
        args=VLLM_ARGS,
        owned_args=OWNED,
        slots_arg="max-num-seqs",
        context_arg="max-model-len",
        workers=True,
        adapters=True,
    ),
    "custom": EngineFacts(
        import_path="tollway_serving.engines.custom:build",
        endpoints=("ChatCompletions",),
        more_endpoints=("Completions", "Embeddings"),
        more_capabilities=("StructuredOutput", "Logprobs", "Tools", "Reasoning", "ImageInput", "AudioInput"),
        parameters=(
            *(*SAMPLING, "logprobs", "top_logprobs", "response_format", *TOOLS, "reasoning_effort"),
            *("echo", "best_of", "suffix", "encoding_format", "dimensions"),
        ),
        context_tokens=8192,
        output_tokens=4096,
        slots=32,
        token_bound=TokenBound(fixed=512),
        sources=SCHEMES,
        needs_source=False,
        args={
            "import-path": Arg("string", "MODULE:NAME in the image: an ASGI application, or a function that makes one"),
            "slots": Arg("integer", "requests that a replica works on at once", 1, 65_536),
        },
        needs_args=("import-path",),
        free_args=True,
        slots_arg="slots",
        continuous_usage=False,
    ),
    "remote": EngineFacts(
        import_path=None,
        endpoints=("ChatCompletions",),
        more_endpoints=("Completions", "Embeddings"),
        capabilities=("StructuredOutput", "Logprobs", "Tools", "ImageInput"),
        more_capabilities=("AudioInput", "FileInput", "Reasoning"),
        parameters=(
            *SAMPLING,
            "logprobs",
            "top_logprobs",
            "response_format",
            *TOOLS,
            "reasoning_effort",
            "echo",
            "best_of",
            "suffix",
            "encoding_format",
            "dimensions",
        ),
        context_tokens=8192,
        output_tokens=4096,
        slots=100,
    ),
}
"""By `engine.name`; one that is missing here is UnknownEngine in the ModelDeployment's condition."""
