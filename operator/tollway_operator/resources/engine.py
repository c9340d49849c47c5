"""A ModelDeployment's engine and where its weights come from: two parts of `model_deployment`, which has the rest."""

import re
from typing import Annotated

from pydantic import Field, StrictStr

from tollway_operator.resources.common import WITHOUT_NULLS, LocalSecret, Model, ModelId, Name, Text
from tollway_operator.resources.rules import IntOrString, Rule

Uri = Annotated[
    StrictStr,
    Field(max_length=1024),
    Rule(
        "self.matches('^(package|hf|s3|pvc|https)://[^ ]+$')",
        "write package://, hf://, s3://, pvc:// or https:// and the place there, such as hf://Qwen/Qwen3-8B@main",
        lambda text: re.fullmatch("(package|hf|s3|pvc|https)://[^ ]+", text) is not None,
    ),
]
ArgValue = Annotated[int | str, IntOrString(4096)]
Args = Annotated[dict[StrictStr, ArgValue], Field(max_length=64), WITHOUT_NULLS]


class Engine(Model):
    name: Name = Field(description="The program that runs the model: llamacpp, vllm, custom, remote, ...")
    image: Text | None = Field(default=None, description="Container image of the pods; by default the installation's.")
    args: Args = Field(
        default={}, description="Settings of the engine, whole numbers or strings; the engine says which it knows."
    )


class Source(Model):
    RULES = (
        Rule(
            "!has(self.adapterOf) || has(self.uri)",
            "an adapter needs uri, where its weights are",
            lambda self: self.adapter_of is None or self.uri is not None,
        ),
    )

    uri: Uri | None = Field(
        default=None, description="Where the weights are: package://, hf://, s3://, pvc:// or https://."
    )
    secret_ref: LocalSecret | None = Field(
        default=None, description="A Secret whose entries are the loader's environment."
    )
    adapter_of: ModelId | None = Field(
        default=None, description="These weights are a LoRA adapter, which runs in the model of this id."
    )
