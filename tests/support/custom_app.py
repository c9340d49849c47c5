"""A user's own application for the `custom` engine: plain ASGI that answers chats as OpenAI does."""

import json
from typing import Any


class Echo:
    """Repeats the last message; refuses one that is too long as other servers do."""

    def __init__(self, model: dict[str, Any]) -> None:
        self.model = model

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            return await send({"type": "lifespan.shutdown.complete"})
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        request = json.loads(body)
        text = request["messages"][-1]["content"]
        if len(text) > self.model["context_tokens"]:
            return await self.answer(send, 400, {"error": {"message": "maximum context length is small", "code": 400}})
        if request.get("stream"):
            return await self.stream(send, text)
        message = {"role": "assistant", "content": f"{self.model['args']['greeting']} {text}"}
        usage = {"prompt_tokens": len(text), "completion_tokens": 2, "total_tokens": len(text) + 2}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        return await self.answer(
            send, 200, {"id": "c", "object": "chat.completion", "choices": choices, "usage": usage}
        )

    async def stream(self, send: Any, text: str) -> None:
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        head = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "x"}
        usage = {"prompt_tokens": len(text), "completion_tokens": 2, "total_tokens": len(text) + 2}
        chunks: list[dict[str, Any]] = [
            {**head, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            for word in text.split()
        ]
        chunks.append({**head, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        chunks.append({**head, "choices": [], "usage": usage})
        for chunk in chunks:
            frame = b"data: %b\n\n" % json.dumps(chunk).encode()
            await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def answer(self, send: Any, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def make(model: dict[str, Any]) -> Echo:
    return Echo(model)


async def make_later(model: dict[str, Any]) -> Echo:
    return Echo(model)


ready = Echo({"model_id": "m", "context_tokens": 100, "args": {"greeting": "hi"}})
