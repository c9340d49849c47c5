"""Tools and response formats for an engine that only generates by a grammar: `llamacpp` asks here what to generate.

Functions are described in the system prompt; a call is JSON that a grammar makes right: the function's name is one of
those offered, its arguments are valid for its parameters. With `tool_choice: auto` the engine first decides whether a
function is needed at all (`Decision`), because a small model never begins a call by itself.

Pure: messages and grammars in, pieces of OpenAI's answer out.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from tollway_serving.engines import gbnf
from tollway_serving.engines.calls import BEFORE_ARGUMENTS, BEFORE_NAME, Mode
from tollway_serving.engines.grammar import schema_rule
from tollway_serving.engines.protocol import EngineError
from tollway_serving.engines.rules import Rules, written

MAX_TOOLS = 128
MAX_CALLS = 8  # in one answer
_DECISION_TEXT = 1000  # characters of the request that the decision reads


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether one of the functions is needed: the model continues `asked` with one of `labels` or with `neither`.

    How likely each is depends on its wording too, so that the same is measured for `neutral`, a request for nothing.
    """

    asked: list[dict[str, str]]
    neutral: list[dict[str, str]]
    labels: tuple[str, ...]
    neither: str


@dataclass(frozen=True, slots=True)
class Plan:
    """How a chat request is generated. `mode`: `decide` asks `decision` first whether it is text or calls."""

    messages: list[dict[str, Any]]
    mode: Mode | Literal["decide"] = "text"
    text_grammar: str | None = None
    call_grammar: str | None = None
    decision: Decision | None = None
    ignored: tuple[str, ...] = ()  # paths of what is accepted without effect


@dataclass(frozen=True, slots=True)
class _Function:
    name: str
    description: str
    parameters: Mapping[str, Any]
    strict: bool
    path: str


def plan(request: Mapping[str, Any]) -> Plan:
    """The plan of a chat request whose messages have text contents. EngineError for what can't be kept."""
    messages: list[dict[str, Any]] = request["messages"]
    functions = _functions(request.get("tools"))
    choice, named = _choice(request.get("tool_choice"), functions)
    rules = Rules()
    text_root = _text_root(rules, request.get("response_format"))
    text_grammar = rules.text(text_root) if text_root else None
    plain = _plain(messages)
    if choice == "none":
        return Plan(plain, text_grammar=text_grammar, ignored=tuple(rules.ignored))
    offered = [function for function in functions if named in (None, function.name)]
    parallel = request.get("parallel_tool_calls") is not False
    calls = _calls_root(rules, offered, parallel)
    described = _with_system(plain, _instructions(offered))
    ignored = tuple(dict.fromkeys(rules.ignored))
    if choice == "required":
        return Plan(described, "calls", call_grammar=rules.text(calls), ignored=ignored)
    asked, called = _since_last_question(messages)
    left = [function for function in offered if function.name not in called]
    free = text_grammar or rules.text(rules.add(r"([^\[{ \n\t] [^\x00]*)?"))  # never something like a call
    if not left:
        return Plan(described, text_grammar=free, ignored=ignored)
    return Plan(
        described, "decide", free, rules.text(_calls_root(rules, left, parallel)), _decision(left, asked), ignored
    )


def _since_last_question(messages: list[dict[str, Any]]) -> tuple[str, set[str]]:
    """The user's last words, and the functions called since. A small model would call the same one for ever: with
    `auto`, each is called at most once (in one answer or several) until the user speaks again."""
    called: set[str] = set()
    for message in reversed(messages):
        if message["role"] == "user":
            return str(message["content"]), called
        called |= {call["function"]["name"] for call in message.get("tool_calls") or ()}
    return "", called


def _functions(tools: Any) -> list[_Function]:
    if not tools:
        return []
    if not isinstance(tools, list) or len(tools) > MAX_TOOLS:
        raise EngineError(f"tools must be a list of at most {MAX_TOOLS}.", param="tools")
    functions: list[_Function] = []
    for at, tool in enumerate(tools):
        path = f"tools[{at}]"
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise EngineError(f"'{path}.type' must be 'function'.", param=f"{path}.type")
        function = tool.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(function, Mapping) or not _is_name(name):
            raise EngineError(
                f"'{path}.function.name' must be 1 to 64 letters, digits, '_' or '-'.", param=f"{path}.function.name"
            )
        if any(name == other.name for other in functions):
            raise EngineError(f"Two tools are named '{name}'.", param=f"{path}.function.name")
        parameters = function.get("parameters")
        if parameters is None:
            parameters = {"type": "object", "properties": {}, "additionalProperties": False}
        if not isinstance(parameters, Mapping) or ("type" in parameters and parameters["type"] != "object"):
            raise EngineError(
                f"'{path}.function.parameters' must be a JSON schema of type 'object'.",
                param=f"{path}.function.parameters",
            )
        if "$ref" not in parameters:
            parameters = {"type": "object", **parameters}
        functions.append(
            _Function(
                str(name),
                str(function.get("description") or ""),
                parameters,
                function.get("strict") is True,
                f"{path}.function.parameters",
            )
        )
    return functions


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) is not None


def _choice(wanted: Any, functions: list[_Function]) -> tuple[Literal["none", "auto", "required"], str | None]:
    """How calls are asked for, and the only function that may be called."""
    if not functions:
        if wanted not in (None, "none", "auto"):
            raise EngineError("'tool_choice' is only allowed with 'tools'.", param="tool_choice")
        return "none", None
    if wanted in (None, "auto"):
        return "auto", None
    if wanted in ("none", "required"):
        return wanted, None
    function = wanted.get("function") if isinstance(wanted, Mapping) and wanted.get("type") == "function" else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name is None:
        raise EngineError("'tool_choice' must be none, auto, required or a function.", param="tool_choice")
    if all(name != offered.name for offered in functions):
        raise EngineError(f"'tool_choice' names no tool: {name}.", param="tool_choice.function.name")
    return "required", str(name)


def _text_root(rules: Rules, wanted: Any) -> str | None:
    """The operand of a response format; None for text."""
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return rules.any_object()
    described = wanted.get("json_schema") if kind == "json_schema" else None
    if not isinstance(described, Mapping):
        raise EngineError(
            "'response_format' must be text, json_object, or json_schema with a schema.", param="response_format"
        )
    schema = described.get("schema")
    path = "response_format.json_schema.schema"
    return schema_rule(
        rules, {"type": "object"} if schema is None else schema, path, strict=described.get("strict") is True
    )


def _calls_root(rules: Rules, functions: list[_Function], parallel: bool) -> str:
    options = []
    for function in functions:
        arguments = schema_rule(rules, function.parameters, function.path, strict=function.strict)
        options.append(f"{gbnf.literal(BEFORE_NAME + function.name + BEFORE_ARGUMENTS)} {arguments} " + '"}"')
    call = rules.add(gbnf.union(options))
    return rules.add(f'({call} | "[" {gbnf.listed(call, 1, MAX_CALLS)} "]")' if parallel else call)


def _instructions(functions: list[_Function]) -> str:
    lines = [
        written({"name": f.name, "description": f.description, "parameters": dict(f.parameters)}) for f in functions
    ]
    return (
        "You can call these functions:\n"
        + "\n".join(lines)
        + '\nTo call one, answer only with JSON: {"name": NAME, "arguments": OBJECT}, or with a list of such objects. '
        "Where no function is needed, answer in plain words."
    )


def _with_system(messages: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    if messages[0]["role"] == "system":
        return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def _plain(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The conversation for a template without tools: calls as the assistant's JSON, results as the user's words."""
    plain: list[dict[str, Any]] = []
    waiting: dict[str, str] = {}  # calls without a result so far: id -> function
    for at, message in enumerate(messages):
        role, content = message["role"], message["content"]
        if role == "tool":
            name = waiting.pop(str(message.get("tool_call_id")), None)
            if name is None:
                raise EngineError(
                    f"'messages[{at}]' must answer a call of the assistant's message before it: no call has its "
                    "tool_call_id.",
                    param=f"messages[{at}].tool_call_id",
                )
            content = f"Result of {name}: {content}"
            if messages[at - 1]["role"] == "tool":
                plain[-1]["content"] += f"\n{content}"
            else:
                plain.append({"role": "user", "content": content})
            continue
        if waiting:
            raise EngineError(
                f"'messages[{at}]' must be a tool message: these calls have no answer yet: {', '.join(waiting)}.",
                param=f"messages[{at}].role",
            )
        if calls := message.get("tool_calls"):
            described, waiting = _calls(calls, f"messages[{at}].tool_calls")
            content = f"{content}\n{described}" if content else described
        plain.append({"role": role, "content": content})
    if waiting:
        raise EngineError(f"These calls have no answer yet: {', '.join(waiting)}.", param="messages")
    return plain


def _calls(calls: Any, path: str) -> tuple[str, dict[str, str]]:
    """An assistant's calls as they were generated, and their functions by id."""
    shown, names = [], {}
    try:
        for call in calls:
            name, arguments = str(call["function"]["name"]), call["function"]["arguments"]
            names[str(call["id"])] = name
            shown.append(BEFORE_NAME + name + BEFORE_ARGUMENTS + _tidy(arguments) + "}")
    except (TypeError, KeyError, AttributeError):
        raise EngineError(f"'{path}' must be a list of function calls.", param=path) from None
    return shown[0] if len(shown) == 1 else "[" + ", ".join(shown) + "]", names


def _tidy(arguments: str) -> str:
    try:
        return written(orjson.loads(arguments))
    except orjson.JSONDecodeError:  # the model's own earlier mistake, or cut short: shown as it was
        return arguments


def _decision(functions: list[_Function], request: str) -> Decision:
    neither = "none" if all(f.name != "none" for f in functions) else "no_function"
    options = "".join(f"\n- {f.name}: {f.description or f.name.replace('_', ' ')}" for f in functions)
    system = (
        f"Choose the function that the request needs, or {neither}.{options}\n"
        f"- {neither}: Talk, explain, write or answer without a function"
    )
    first = functions[0]

    def shots(asked: str) -> list[dict[str, str]]:
        pairs = [
            ("Hello", neither),
            (first.description or first.name, first.name),
            ("Write a text about a tree", neither),
        ]
        messages = [{"role": "system", "content": system}]
        for shown, answer in pairs:
            messages.append({"role": "user", "content": f"Request: {shown}\nFunction:"})
            messages.append({"role": "assistant", "content": answer})
        return [*messages, {"role": "user", "content": f"Request: {asked}\nFunction:"}]

    return Decision(shots(request[-_DECISION_TEXT:]), shots("N/A"), tuple(f.name for f in functions), neither)
