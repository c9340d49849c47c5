"""LoRA adapters of a vLLM replica: those wanted are loaded, the others unloaded, while it serves. Used by `vllm`.

An adapter that can't be loaded harms nobody else: calls to it are answered by vLLM as of a model that isn't there
(gateways make Unavailable of it), and it is tried again.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

log = structlog.get_logger(__name__)

_RETRY = 30.0  # seconds

Fetch = Callable[[str, str | None], Awaitable[Path]]


class Adapters:
    """`fetch` brings an adapter's files to this replica's nodes."""

    def __init__(self, fetch: Fetch, retry: float = _RETRY) -> None:
        self._fetch = fetch
        self._retry = retry
        self._wanted: Mapping[str, Mapping[str, Any]] = {}
        self._loaded: dict[str, Mapping[str, Any]] = {}
        self._models: Any = None
        self._turn = asyncio.Lock()
        self._again: asyncio.Task[None] | None = None

    async def begin(self, models: Any) -> None:
        """`models` is vLLM's registry (OpenAIServingModels)."""
        self._models = models
        await self._settle()

    async def want(self, adapters: Mapping[str, Mapping[str, Any]]) -> None:
        """By model id: `source` and, where it needs one, `secret`. Returns when each was tried."""
        self._wanted = adapters
        if self._models is not None:
            await self._settle()

    async def _settle(self) -> None:
        async with self._turn:
            wanted = self._wanted
            for name in [name for name, told in self._loaded.items() if wanted.get(name) != told]:
                await self._unload(name)
            failed = [
                name for name, told in wanted.items() if name not in self._loaded and not await self._load(name, told)
            ]
        if self._again is not None and self._again is not asyncio.current_task():
            self._again.cancel()
        self._again = asyncio.create_task(self._later()) if failed else None

    async def _later(self) -> None:
        await asyncio.sleep(self._retry)
        await self._settle()

    async def _load(self, name: str, told: Mapping[str, Any]) -> bool:
        from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

        try:
            path = await self._fetch(str(told["source"]), told.get("secret"))
            answer = await self._models.load_lora_adapter(LoadLoRAAdapterRequest(lora_name=name, lora_path=str(path)))
        except Exception as error:  # whatever it is, the model and the other adapters go on
            log.warning("adapter not loaded", adapter=name, error=f"{type(error).__name__}: {error}")
            return False
        if not isinstance(answer, str):
            log.warning("adapter not loaded", adapter=name, error=str(getattr(answer, "error", answer)))
            return False
        self._loaded[name] = told
        log.info("adapter loaded", adapter=name)
        return True

    async def _unload(self, name: str) -> None:
        from vllm.entrypoints.serve.lora.protocol import UnloadLoRAAdapterRequest

        await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
        self._loaded.pop(name)
        log.info("adapter unloaded", adapter=name)
