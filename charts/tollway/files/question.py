"""Run by `helm test` in a pod: lists the models and asks one of them a question. Tries for three minutes."""

import json
import os
import sys
import time
import urllib.error
import urllib.request

# From inside, the Service; an Ingress' name may not be known here.
BASE = os.environ.get("INSIDE_URL") or os.environ["OPENAI_BASE_URL"]
HEADERS = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}


def call(path, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(BASE + path, data, HEADERS)  # noqa: S310 - an address of the cluster's own
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        return json.load(answer)


def ask():
    models = [model["id"] for model in call("/models")["data"]]
    if not models:
        return "no model in this namespace yet: kubectl apply -f examples/quickstart"
    said = []
    for model in [os.environ["MODEL"]] if os.environ.get("MODEL") else models:
        question = [{"role": "user", "content": "What is a toll road?"}]
        try:
            answer = call("/chat/completions", {"model": model, "messages": question, "max_tokens": 24})
        except urllib.error.HTTPError as error:  # one that doesn't chat; or that isn't ready yet
            said.append(f"{model}: {error.code}: {error.read().decode(errors='replace')}")
            continue
        print(f"{model}: {answer['choices'][0]['message']['content']!r}, {answer['usage']}")  # noqa: T201 - the test's output
        return None
    return "; ".join(said)


trouble = ""
for _ in range(60):
    try:
        trouble = ask()
        if trouble is None:
            sys.exit(0)
    except urllib.error.HTTPError as error:
        trouble = f"{error.code}: {error.read().decode(errors='replace')}"
    except OSError as error:
        trouble = str(error)
    time.sleep(3)
sys.exit(f"no answer from {BASE}: {trouble}")
