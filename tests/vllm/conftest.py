"""Real vLLM: hack/vllm-cpu runs these with its own Python; elsewhere the folder has no tests."""

import importlib.util
import sys
from pathlib import Path

_HERE = Path(__file__).parent
collect_ignore_glob = ["test_*.py"] if importlib.util.find_spec("vllm") is None else []


def pytest_report_header() -> str:
    if collect_ignore_glob:
        return f"{_HERE.name}: opt-in, run hack/vllm-cpu (no vLLM in {sys.prefix})"
    return "vLLM on this machine's CPU"
