"""A client that reads one answer for minutes, and one that asks again and again: for tests/serve."""

import threading
import time
from typing import Any

import openai
from support.up import Up


class LongStream(threading.Thread):
    """Reads one answer for minutes: ten choices of a model that must not end (its end token is forbidden)."""

    def __init__(self, up: Up) -> None:
        super().__init__(daemon=True)
        self.up = up
        self.begun = 0.0
        self.last = 0.0
        self.longest_pause = 0.0
        self.ended: str | None = None
        self.leave = threading.Event()
        self.flowing = threading.Event()

    def run(self) -> None:
        try:
            self._read()
        except Exception as error:
            self.ended = f"{type(error).__name__}: {error}"
            self.flowing.set()

    def _read(self) -> None:
        request: dict[str, Any] = {
            "model": "long",
            "messages": [{"role": "user", "content": "Tell a long story."}],
            "max_tokens": 7900,
            "n": 10,
            "logit_bias": {"0": -100, "2": -100},
            "stream": True,
        }
        with openai.OpenAI(api_key=self.up.key, base_url=f"{self.up.root}/v1", max_retries=0) as client:
            for _chunk in client.chat.completions.create(**request):
                now = time.monotonic()
                if not self.begun:
                    self.begun = self.last = now
                    self.flowing.set()
                self.longest_pause = max(self.longest_pause, now - self.last)
                self.last = now
                if self.leave.is_set():
                    return
        self.ended = "[DONE]"


class Poller(threading.Thread):
    """Asks a model that nobody touches, again and again; whatever is not a 200 is kept."""

    def __init__(self, up: Up) -> None:
        super().__init__(daemon=True)
        self.up = up
        self.stop = threading.Event()
        self.answers = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stop.wait(0.3):
            try:
                answer = self.up.chat("small", text="hi", max_tokens=1)
                self.answers += 1
                if answer.status != 200:
                    self.failures.append(f"{answer.status} {answer.body.decode()}")
            except OSError as error:
                self.failures.append(repr(error))
