"""A steady load on the platform, counted: hack/e2e runs it in a pod and reads its last line.

Every request has a connection of its own, every other one streams; one that isn't answered whole is a failure, whatever
the reason. Prints one JSON line a second: {"sent", "failed", "error" (the last one)} since the
start, and "slowest", in seconds, of those that ended since the last line.
"""

import json
import os
import threading
import time
import urllib.error
import urllib.request
from typing import Any

URL = os.environ["URL"]  # up to and with /v1
MODEL = os.environ["MODEL"]
CLIENTS = 3
PAUSE_S = 0.2

lock = threading.Lock()
totals: dict[str, Any] = {"sent": 0, "failed": 0, "slowest": 0.0, "error": ""}


def ask(stream: bool) -> str:
    """What went wrong, or nothing."""
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": MODEL, "messages": messages, "max_tokens": 8, "stream": stream}
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    request = urllib.request.Request(URL + "/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code}: {error.read().decode(errors='replace')[:300]}"
    except OSError as error:
        return repr(error)
    if stream:
        return "" if text.rstrip().endswith("data: [DONE]") else f"cut off: {text[-300:]}"
    return "" if json.loads(text)["choices"][0]["finish_reason"] else "no finish_reason"


def client(number: int) -> None:
    stream = bool(number % 2)
    while True:
        started = time.monotonic()
        try:
            error = ask(stream)
        except Exception as unexpected:  # not HTTP, not JSON: it counts, and the others go on
            error = repr(unexpected)
        took = time.monotonic() - started
        with lock:
            totals["sent"] += 1
            totals["slowest"] = round(max(totals["slowest"], took), 2)
            if error:
                totals["failed"] += 1
                totals["error"] = error
        stream = not stream
        time.sleep(PAUSE_S)


for number in range(CLIENTS):
    threading.Thread(target=client, args=(number,), daemon=True).start()
while True:
    time.sleep(1)
    with lock:
        print(json.dumps(totals), flush=True)
        totals["slowest"] = 0.0
