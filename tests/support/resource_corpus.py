# ruff: noqa: E501 - the tables read better with one case a line
"""Good and bad objects with the verdict that both the API server and Python must give: read by tests/unit and tests/api.

Specs are what JSON would carry. A bad one names the field and the words that both must say.
"""

from dataclasses import dataclass
from typing import Any

ENGINE = {"engine": {"name": "vllm"}}
REMOTE = {"engine": {"name": "remote"}, "remote": {"url": "https://example.com/v1"}}
PLAN_REF = {"planRef": {"name": "pro"}}

CREDITS = 'write a whole number or a quoted decimal with at most 6 decimals, such as "0.15"'
QUANTITY = 'write an amount above 0, such as 25Mi, 24Gi or "0.5"'
DURATION = "write a duration such as 30s, 10m or 1h30m"
POSITIVE_DURATION = "write a duration above 0 such as 30s, 10m or 1h30m"
MODEL_ID = "an id starts with a letter or digit and goes on with letters, digits and - . _ : / @ +"
NAME = "a name has lower-case letters, digits, - and ., and starts and ends with a letter or digit"
ROTATION = "every is at least 1h, and overlap (24h if absent) is shorter than every"
REMOTE_ONLY = "a remote model takes no source, resources or autoscaling"
ADAPTER = {"uri": "hf://a/b", "adapterOf": "base"}
ADAPTER_ONLY = "an adapter runs in its base: it takes no resources, autoscaling, engine.image or engine.args"
REMOTE_BOTH = "engine.name: remote and the field remote go together; write both or neither"
OWN_FALLBACK = "a model can't be its own fallback"
DATE_TIME = "must be of type date-time"
INT_OR_STRING = "must be of type integer,string"


@dataclass(frozen=True)
class Good:
    label: str
    kind: str
    spec: Any
    name: str = "x"


@dataclass(frozen=True)
class Bad:
    label: str
    kind: str
    spec: Any
    field: str  # "" for the whole object
    message: str
    name: str = "x"


def md(**fields: Any) -> dict[str, Any]:
    return {**ENGINE, **fields}


def ak(**fields: Any) -> dict[str, Any]:
    return {**PLAN_REF, **fields}


def quota(name: str = "chat", **fields: Any) -> dict[str, Any]:
    return {"name": name, "meter": "Tokens", "limit": 10, **fields}


def default(endpoint: str) -> dict[str, str]:
    return {"endpoint": endpoint, "modelId": "small"}


MD, PLAN, AK = "ModelDeployment", "Plan", "ApiKey"

GOOD = [
    Good("md-smallest", MD, ENGINE),
    Good("md-name-of-63", MD, ENGINE, "n" * 63),
    Good("md-remote", MD, REMOTE),
    Good(
        "md-empty-parts", MD, md(source={}, resources={}, autoscaling={}, info={}, pricing={}, limits={}, timeouts={})
    ),
    Good("md-null-is-absent", MD, md(source=None, limits=None, rollout=None, autoscaling={"minReplicas": None})),
    Good("md-null-arg-is-absent", MD, {"engine": {"name": "vllm", "args": {"a": None, "b": 1, "c": "0.9"}}}),
    Good("md-empty-lists", MD, md(aliases=[], fallbacks=[], endpoints=[], allowedNamespaces=[])),
    Good("md-id-of-128", MD, md(modelId="Org/Model-1.5:q4@main+x_y" + "z" * 103)),
    Good("md-fallback-has-its-name", MD, md(modelId="y", fallbacks=[{"modelId": "x"}])),
    Good("md-fallbacks", MD, md(fallbacks=[{"modelId": f"m{i}", "when": ["CreditsLow"]} for i in range(8)])),
    Good(
        "md-prices",
        MD,
        md(pricing={"perPage": 999999999, "perFile": "999999999.999999", "perImage": "0", "perRequest": 0}),
    ),
    Good("md-hour", MD, md(timeouts={"total": "60m"})),
    Good("md-milliseconds", MD, md(timeouts={"connect": "1h2m3s4ms", "idle": "1500ms"})),
    Good("md-no-delay", MD, md(autoscaling={"scaleUpDelay": "0s"})),
    Good("md-sleeps", MD, md(autoscaling={"minReplicas": 0, "maxReplicas": 1, "coldStart": "Refuse"})),
    Good("md-same-replicas", MD, md(autoscaling={"minReplicas": 3, "maxReplicas": 3})),
    Good("md-quantities", MD, md(resources={"cpu": "500m", "memory": 1})),
    Good("md-quantities-exact", MD, md(resources={"cpu": "0.1n", "memory": "99999999999999999999E"})),
    Good("md-uris", MD, md(source={"uri": "pvc://weights/qwen", "secretRef": {"name": "hf.token"}})),
    Good("md-tolerations", MD, md(resources={"tolerations": [{}, {"key": "a", "effect": "NoSchedule"}, {}]})),
    Good("md-same-tokens", MD, md(limits={"contextTokens": 5, "outputTokens": 5})),
    Good("md-non-ascii-info", MD, md(info={"ownedBy": "é" * 256})),
    Good("md-everywhere", MD, md(allowedNamespaces=["*", "team-a"])),
    Good("plan-empty", PLAN, {}),
    Good("plan-without-spec", PLAN, None),
    Good("plan-quotas", PLAN, {"quotas": [quota(f"q{i}", limit=10**15) for i in range(16)]}),
    Good("plan-quota-of-nothing", PLAN, {"quotas": [quota(limit=0, period="Day", meter="Images")]}),
    Good("plan-whole-float", PLAN, {"quotas": [quota(limit=2.0)]}),
    Good("plan-256-models", PLAN, {"models": {"ids": [f"m{i}" for i in range(256)]}}),
    Good("plan-no-models", PLAN, {"models": {"ids": []}}),
    Good("plan-by-label", PLAN, {"models": {"selector": {"matchLabels": {"class": "std"}}}}),
    Good("plan-credits", PLAN, {"credits": {"monthly": 5, "lowWatermark": "5.000000"}}),
    Good("plan-watermark-alone", PLAN, {"credits": {"lowWatermark": 5}}),
    Good("plan-sizes", PLAN, {"limits": {"fileSize": "1Gi", "storage": "1024Mi"}}),
    Good("plan-default-of-its-endpoints", PLAN, {"endpoints": ["Files"], "defaultModels": [default("Files")]}),
    Good("plan-no-endpoints", PLAN, {"endpoints": [], "defaultModels": []}),
    Good(
        "plan-largest",
        PLAN,
        {
            "credits": {"monthly": "999999999.999999"},
            "limits": {"requestsPerMinute": 10**9, "tokensPerMinute": 10**9, "concurrentRequests": 10**6},
            "trial": {"duration": "999999h", "requests": 10**9},
        },
    ),
    Good("plan-trial", PLAN, {"trial": {"duration": "336h", "requests": 60}}),
    Good("key-smallest", AK, PLAN_REF),
    Good("key-suspended", AK, ak(state="Suspended")),
    Good("key-expires-with-offset", AK, ak(expiresAt="2027-02-20t00:00:00.123456+02:00")),
    Good("key-expires-with-odd-offset", AK, ak(expiresAt="2027-02-20T00:00:00+25:00")),
    Good("adapter", MD, md(source=ADAPTER)),
    Good(
        "adapter-with-empty-args",
        MD,
        {"engine": {"name": "vllm", "args": {}}, "source": {**ADAPTER, "secretRef": {"name": "s"}}},
    ),
    Good("key-leap-day", AK, ak(expiresAt="2028-02-29T23:59:59Z")),
    Good("key-rotates", AK, ak(rotation={"every": "1h", "overlap": "59m"})),
    Good("key-overlap-alone", AK, ak(rotation={"overlap": "1000h"})),
    Good("key-imported", AK, ak(secretRef={"name": "old"})),
    Good("key-imported-with-overlap", AK, ak(secretRef={"name": "old", "key": "my.KEY_1"}, rotation={"overlap": "1h"})),
    Good("key-account", AK, ak(account="Acme_1@example.com")),
]

BAD = [
    # What API.md promises word for word.
    Bad("price-float", MD, md(pricing={"perPage": 0.15}), "spec.pricing.perPage", 'must be of type integer,string: "number"'),
    Bad("price-7-decimals", MD, md(pricing={"perPage": "0.1234567"}), "spec.pricing.perPage", CREDITS),
    Bad("remote-with-source", MD, {**REMOTE, "source": {}}, "spec", REMOTE_ONLY),
    Bad("key-imported-rotates", AK, ak(secretRef={"name": "a"}, rotation={"every": "48h"}), "spec", "a key from secretRef rotates when you change its Secret"),
    # Required and types.
    Bad("md-without-spec", MD, None, "spec", "Required value"),
    Bad("md-without-engine", MD, {}, "spec.engine", "Required value"),
    Bad("md-null-engine", MD, {"engine": None}, "spec.engine", "Required value"),
    Bad("md-engine-without-name", MD, {"engine": {}}, "spec.engine.name", "Required value"),
    Bad("key-without-plan", AK, {}, "spec.planRef", "Required value"),
    Bad("key-plan-without-name", AK, {"planRef": {}}, "spec.planRef.name", "Required value"),
    Bad("quota-without-limit", PLAN, {"quotas": [{"name": "a", "meter": "Tokens"}]}, "spec.quotas[0].limit", "Required value"),
    Bad("fallback-without-id", MD, md(fallbacks=[{}]), "spec.fallbacks[0].modelId", "Required value"),
    Bad("list-for-object", PLAN, [], "spec", 'must be of type object: "array"'),
    Bad("object-for-list", PLAN, {"quotas": {}}, "spec.quotas", 'must be of type array: "object"'),
    Bad("string-for-list", MD, md(aliases="a"), "spec.aliases", 'must be of type array: "string"'),
    Bad("null-in-list", PLAN, {"models": {"ids": [None]}}, "spec.models.ids[0]", 'must be of type string: "null"'),
    Bad("null-object-in-list", PLAN, {"quotas": [None]}, "spec.quotas[0]", 'must be of type object: "null"'),
    Bad("number-for-string", PLAN, {"displayName": 5}, "spec.displayName", 'must be of type string: "integer"'),
    Bad("string-for-number", PLAN, {"limits": {"requestsPerMinute": "5"}}, "spec.limits.requestsPerMinute", 'must be of type integer: "string"'),
    Bad("string-for-object", MD, md(engine="vllm"), "spec.engine", 'must be of type object: "string"'),
    Bad("boolean-arg", MD, {"engine": {"name": "v", "args": {"a": True}}}, "spec.engine.args.a", f'{INT_OR_STRING}: "boolean"'),
    Bad("float-arg", MD, {"engine": {"name": "v", "args": {"a": 0.9}}}, "spec.engine.args.a", f'{INT_OR_STRING}: "number"'),
    Bad("list-arg", MD, {"engine": {"name": "v", "args": {"a": [1]}}}, "spec.engine.args.a", f'{INT_OR_STRING}: "array"'),
    Bad("label-number", PLAN, {"models": {"selector": {"matchLabels": {"a": 1}}}}, "spec.models.selector.matchLabels.a", 'must be of type string: "integer"'),
    Bad("quota-fraction", PLAN, {"quotas": [quota(limit=2.5)]}, "spec.quotas[0].limit", "must be of type int"),
    # Enumerations.
    Bad("tier", PLAN, {"tier": "paid"}, "spec.tier", 'Unsupported value: "paid": supported values: "Paid", "Free"'),
    Bad("meter", PLAN, {"quotas": [quota(meter="Token")]}, "spec.quotas[0].meter", 'Unsupported value: "Token": supported values: "Tokens", "InputTokens"'),
    Bad("period", PLAN, {"quotas": [quota(period="Year")]}, "spec.quotas[0].period", 'Unsupported value: "Year": supported values: "Day", "Week", "Month"'),
    Bad("endpoint", AK, ak(endpoints=["Chat"]), "spec.endpoints[0]", 'Unsupported value: "Chat": supported values: "ChatCompletions"'),
    Bad("capability", MD, md(capabilities=["Vision"]), "spec.capabilities[0]", 'Unsupported value: "Vision": supported values: "Tools"'),
    Bad("when", MD, md(fallbacks=[{"modelId": "y", "when": ["Down"]}]), "spec.fallbacks[0].when[0]", 'Unsupported value: "Down": supported values: "Unavailable"'),
    Bad("rollout", MD, md(rollout="Canary"), "spec.rollout", 'Unsupported value: "Canary": supported values: "Surge", "Replace"'),
    Bad("cold-start", MD, md(autoscaling={"coldStart": "wait"}), "spec.autoscaling.coldStart", 'Unsupported value: "wait": supported values: "Wait", "Refuse"'),
    Bad("protocol", MD, {**REMOTE, "remote": {**REMOTE["remote"], "protocol": "openai"}}, "spec.remote.protocol", 'Unsupported value: "openai": supported values: "OpenAI", "Anthropic", "Gemini"'),
    Bad("state", AK, ak(state="Off"), "spec.state", 'Unsupported value: "Off": supported values: "Active", "Suspended"'),
    # Sizes.
    Bad("name-of-64", PLAN, {}, "", "a name has at most 63 characters", "n" * 64),
    Bad("id-of-129", MD, md(modelId="m" * 129), "spec.modelId", "Too long: may not be more than 128"),
    Bad("plan-name-of-64", AK, {"planRef": {"name": "n" * 64}}, "spec.planRef.name", "Too long: may not be more than 63"),
    Bad("duration-of-21", MD, md(timeouts={"idle": "1" * 20 + "s"}), "spec.timeouts.idle", "Too long: may not be more than 20"),
    Bad("price-of-21", MD, md(pricing={"perPage": "0" * 21}), "spec.pricing.perPage", "Too long: may not be more than 20"),
    Bad("9-fallbacks", MD, md(fallbacks=[{"modelId": f"m{i}"} for i in range(9)]), "spec.fallbacks", "must have at most 8 items"),
    Bad("33-aliases", MD, md(aliases=[f"m{i}" for i in range(33)]), "spec.aliases", "must have at most 32 items"),
    Bad("17-quotas", PLAN, {"quotas": [quota(f"q{i}") for i in range(17)]}, "spec.quotas", "must have at most 16 items"),
    Bad("257-models", PLAN, {"models": {"ids": [f"m{i}" for i in range(257)]}}, "spec.models.ids", "must have at most 256 items"),
    Bad("65-namespaces", PLAN, {"allowedNamespaces": [f"n{i}" for i in range(65)]}, "spec.allowedNamespaces", "must have at most 64 items"),
    Bad("65-args", MD, {"engine": {"name": "v", "args": {f"a{i}": 1 for i in range(65)}}}, "spec.engine.args", "must have at most 64 items"),
    Bad("no-requests", PLAN, {"limits": {"requestsPerMinute": 0}}, "spec.limits.requestsPerMinute", "should be greater than or equal to 1"),
    Bad("negative-quota", PLAN, {"quotas": [quota(limit=-1)]}, "spec.quotas[0].limit", "should be greater than or equal to 0"),
    Bad("huge-quota", PLAN, {"quotas": [quota(limit=10**15 + 1)]}, "spec.quotas[0].limit", "should be less than or equal to 1"),
    Bad("negative-rate", PLAN, {"limits": {"tokensPerMinute": -1}}, "spec.limits.tokensPerMinute", "should be greater than or equal to 1"),
    Bad("huge-rate", AK, ak(limits={"requestsPerMinute": 10**9 + 1}), "spec.limits.requestsPerMinute", "should be less than or equal to 1"),
    Bad("rate-beyond-64-bits", PLAN, {"limits": {"tokensPerMinute": 2**63}}, "spec.limits.tokensPerMinute", "must be of type int"),
    Bad("huge-concurrency", PLAN, {"limits": {"concurrentRequests": 10**6 + 1}}, "spec.limits.concurrentRequests", "should be less than or equal to 1"),
    Bad("no-trial-requests", PLAN, {"trial": {"requests": 0}}, "spec.trial.requests", "should be greater than or equal to 1"),
    Bad("huge-trial", PLAN, {"trial": {"requests": 10**9 + 1}}, "spec.trial.requests", "should be less than or equal to 1"),
    Bad("negative-key-quota", AK, ak(quotas=[quota(), quota("b", limit=-5)]), "spec.quotas[1].limit", "should be greater than or equal to 0"),
    Bad("huge-context", MD, md(limits={"contextTokens": 10**8 + 1}), "spec.limits.contextTokens", "should be less than or equal to 1"),
    Bad("negative-output", MD, md(limits={"outputTokens": -1}), "spec.limits.outputTokens", "should be greater than or equal to 1"),
    Bad("huge-replicas", MD, md(autoscaling={"minReplicas": 1001}), "spec.autoscaling.minReplicas", "should be less than or equal to 1000"),
    Bad("no-replicas", MD, md(autoscaling={"minReplicas": 0, "maxReplicas": 0}), "spec.autoscaling.maxReplicas", "should be greater than or equal to 1"),
    # Nothing twice.
    Bad("alias-twice", MD, md(aliases=["a", "b", "a"]), "spec.aliases[2]", 'Duplicate value: "a"'),
    Bad("quota-twice", PLAN, {"quotas": [quota(), quota(limit=5)]}, "spec.quotas[1]", 'Duplicate value: {"name":"chat"}'),
    Bad("fallback-twice", MD, md(fallbacks=[{"modelId": "a"}, {"modelId": "a"}]), "spec.fallbacks[1]", 'Duplicate value: {"modelId":"a"}'),
    Bad("default-twice", PLAN, {"defaultModels": [{"endpoint": "Files", "modelId": m} for m in ("a", "b")]}, "spec.defaultModels[1]", 'Duplicate value: {"endpoint":"Files"}'),
    Bad("header-twice", MD, {**REMOTE, "remote": {**REMOTE["remote"], "headers": [{"name": "a", "value": "b"}] * 2}}, "spec.remote.headers[1]", 'Duplicate value: {"name":"a"}'),
    Bad("endpoint-twice", AK, ak(endpoints=["Files", "Files"]), "spec.endpoints[1]", 'Duplicate value: "Files"'),
    # Rules of one value.
    Bad("id-with-space", MD, md(modelId="a b"), "spec.modelId", MODEL_ID),
    Bad("id-empty", MD, md(modelId=""), "spec.modelId", MODEL_ID),
    Bad("id-with-newline", MD, md(modelId="a\n"), "spec.modelId", MODEL_ID),
    Bad("id-non-ascii", MD, md(aliases=["modèle"]), "spec.aliases[0]", MODEL_ID),
    Bad("engine-upper", MD, {"engine": {"name": "vLLM"}}, "spec.engine.name", NAME),
    Bad("secret-upper", AK, ak(secretName="Me"), "spec.secretName", NAME),
    Bad("secret-key-space", AK, ak(secretRef={"name": "a", "key": "a b"}), "spec.secretRef.key", "a Secret's key has letters, digits and - . _"),
    Bad("account-slash", AK, ak(account="a/b"), "spec.account", "an account has letters, digits and - . _ @"),
    Bad("namespace-glob", PLAN, {"allowedNamespaces": ["team-*"]}, "spec.allowedNamespaces[0]", 'write a namespace, or "*" for all'),
    Bad("uri-scheme", MD, md(source={"uri": "http://a"}), "spec.source.uri", "write package://, hf://, s3://, pvc:// or https://"),
    Bad("uri-space", MD, md(source={"uri": "hf://a b"}), "spec.source.uri", "write package://, hf://, s3://, pvc:// or https://"),
    Bad("adapter-without-uri", MD, md(source={"adapterOf": "base"}), "spec.source", "an adapter needs uri"),
    Bad("adapter-with-resources", MD, md(source=ADAPTER, resources={"gpus": 1}), "spec", ADAPTER_ONLY),
    Bad("adapter-with-autoscaling", MD, md(source=ADAPTER, autoscaling={}), "spec", ADAPTER_ONLY),
    Bad("adapter-with-args", MD, {"engine": {"name": "vllm", "args": {"seed": 1}}, "source": ADAPTER}, "spec", ADAPTER_ONLY),
    Bad("adapter-with-image", MD, {"engine": {"name": "vllm", "image": "a"}, "source": ADAPTER}, "spec", ADAPTER_ONLY),
    Bad("own-adapter", MD, md(source={"uri": "hf://a/b", "adapterOf": "x"}), "", "a model can't be its own adapter"),
    Bad("own-adapter-by-id", MD, md(modelId="base", source=ADAPTER), "", "a model can't be its own adapter"),
    Bad("url-scheme", MD, {**REMOTE, "remote": {"url": "example.com"}}, "spec.remote.url", "write an http:// or https:// address"),
    Bad("url-query", MD, {**REMOTE, "remote": {"url": "https://a/v1?key=b"}}, "spec.remote.url", "write an http:// or https:// address"),
    Bad("header-injection", MD, {**REMOTE, "remote": {**REMOTE["remote"], "headers": [{"name": "a", "value": "b\r\nc: d"}]}}, "spec.remote.headers[0].value", "a header's value has printable ASCII characters only"),
    Bad("header-own", MD, {**REMOTE, "remote": {**REMOTE["remote"], "headers": [{"name": "Content-Length", "value": "0"}]}}, "spec.remote.headers[0].name", "the gateway sends this header itself"),
    Bad("header-name", MD, {**REMOTE, "remote": {**REMOTE["remote"], "headers": [{"name": "a b", "value": ""}]}}, "spec.remote.headers[0].name", "a header's name has letters, digits and -"),
    Bad("price-negative", MD, md(pricing={"perPage": -1}), "spec.pricing.perPage", CREDITS),
    Bad("price-huge", MD, md(pricing={"perPage": 10**9}), "spec.pricing.perPage", CREDITS),
    Bad("price-exponent", MD, md(pricing={"perPage": "1e3"}), "spec.pricing.perPage", CREDITS),
    Bad("price-sign", MD, md(pricing={"perPage": "+1"}), "spec.pricing.perPage", CREDITS),
    Bad("price-comma", MD, md(pricing={"perPage": "0,15"}), "spec.pricing.perPage", CREDITS),
    Bad("price-bare-point", MD, md(pricing={"perPage": ".5"}), "spec.pricing.perPage", CREDITS),
    Bad("price-other-digits", MD, md(pricing={"perPage": "\u0661"}), "spec.pricing.perPage", CREDITS),
    Bad("price-10-digits", MD, md(pricing={"perPage": "1000000000.5"}), "spec.pricing.perPage", CREDITS),
    Bad("price-not-a-number", MD, md(pricing={"perPage": "NaN"}), "spec.pricing.perPage", CREDITS),
    Bad("credits-negative", PLAN, {"credits": {"monthly": -5}}, "spec.credits.monthly", CREDITS),
    Bad("credits-huge", PLAN, {"credits": {"monthly": "1000000000"}}, "spec.credits.monthly", CREDITS),
    Bad("credits-7-decimals", AK, ak(credits={"monthly": "0.0000001"}), "spec.credits.monthly", CREDITS),
    Bad("credits-empty", AK, ak(credits={"monthly": ""}), "spec.credits.monthly", CREDITS),
    Bad("memory-zero", MD, md(resources={"memory": 0}), "spec.resources.memory", QUANTITY),
    Bad("memory-unit", MD, md(resources={"memory": "24GB"}), "spec.resources.memory", QUANTITY),
    Bad("memory-negative", MD, md(resources={"memory": "-1Gi"}), "spec.resources.memory", QUANTITY),
    # isQuantity alone kept an API server busy until its time-out.
    Bad("memory-exponent", MD, md(resources={"memory": "1e99999999999"}), "spec.resources.memory", QUANTITY),
    Bad("storage-exponent", PLAN, {"limits": {"fileSize": 1, "storage": "1e99999999999"}}, "spec.limits.storage", QUANTITY),
    Bad("watermark-exponent", PLAN, {"credits": {"monthly": 1, "lowWatermark": "1e99999999999"}}, "spec.credits.lowWatermark", CREDITS),
    Bad("duration-bare", MD, md(autoscaling={"scaleUpDelay": "30"}), "spec.autoscaling.scaleUpDelay", DURATION),
    Bad("duration-days", AK, ak(rotation={"every": "30d"}), "spec.rotation.every", POSITIVE_DURATION),
    Bad("duration-order", MD, md(timeouts={"idle": "1s1m"}), "spec.timeouts.idle", POSITIVE_DURATION),
    Bad("duration-fraction", MD, md(timeouts={"idle": "1.5s"}), "spec.timeouts.idle", POSITIVE_DURATION),
    Bad("duration-empty", MD, md(timeouts={"total": ""}), "spec.timeouts.total", POSITIVE_DURATION),
    Bad("duration-zero", MD, md(timeouts={"connect": "0s"}), "spec.timeouts.connect", POSITIVE_DURATION),
    Bad("duration-negative", MD, md(timeouts={"connect": "-1s"}), "spec.timeouts.connect", POSITIVE_DURATION),
    Bad("trial-zero", PLAN, {"trial": {"duration": "0h"}}, "spec.trial.duration", POSITIVE_DURATION),
    Bad("expires-date", AK, ak(expiresAt="2027-12-31"), "spec.expiresAt", DATE_TIME),
    Bad("expires-local", AK, ak(expiresAt="2027-12-31T00:00:00"), "spec.expiresAt", DATE_TIME),
    Bad("expires-february-30", AK, ak(expiresAt="2027-02-30T00:00:00Z"), "spec.expiresAt", DATE_TIME),
    Bad("expires-24-hours", AK, ak(expiresAt="2027-02-20T24:00:00Z"), "spec.expiresAt", DATE_TIME),
    # Rules between values.
    Bad("own-fallback-by-name", MD, md(fallbacks=[{"modelId": "x"}]), "", OWN_FALLBACK),
    Bad("own-fallback-by-id", MD, md(modelId="y", fallbacks=[{"modelId": "a"}, {"modelId": "y"}]), "", OWN_FALLBACK),
    Bad("remote-without-field", MD, {"engine": {"name": "remote"}}, "spec", REMOTE_BOTH),
    Bad("field-without-remote", MD, md(remote=REMOTE["remote"]), "spec", REMOTE_BOTH),
    Bad("remote-with-resources", MD, {**REMOTE, "resources": {"cpu": 1}}, "spec", REMOTE_ONLY),
    Bad("remote-with-autoscaling", MD, {**REMOTE, "autoscaling": {}}, "spec", REMOTE_ONLY),
    Bad("total-over-an-hour", MD, md(timeouts={"total": "1h1ms"}), "spec.timeouts", "total is at most 1h"),
    Bad("max-below-min", MD, md(autoscaling={"minReplicas": 3, "maxReplicas": 2}), "spec.autoscaling", "maxReplicas must be at least minReplicas"),
    Bad("max-below-default-min", MD, md(autoscaling={"minReplicas": 2, "maxReplicas": 1}), "spec.autoscaling", "maxReplicas must be at least minReplicas"),
    Bad("output-over-context", MD, md(limits={"contextTokens": 5, "outputTokens": 6}), "spec.limits", "outputTokens must be at most contextTokens"),
    Bad("watermark-over-monthly", PLAN, {"credits": {"monthly": 5, "lowWatermark": "5.000001"}}, "spec.credits", "lowWatermark must be at most monthly"),
    Bad("trial-of-nothing", PLAN, {"trial": {}}, "spec.trial", "write duration, requests or both; leave trial out for none"),
    Bad("default-elsewhere", PLAN, {"endpoints": ["Files"], "defaultModels": [default("Files"), default("Embeddings")]}, "spec", "defaultModels has an endpoint that is not among endpoints"),
    Bad("default-of-no-endpoint", PLAN, {"endpoints": [], "defaultModels": [default("Files")]}, "spec", "defaultModels has an endpoint that is not among endpoints"),
    Bad("file-over-storage", PLAN, {"limits": {"fileSize": "1Gi", "storage": "1G"}}, "spec.limits", "fileSize must be at most storage"),
    Bad("models-of-nothing", PLAN, {"models": {}}, "spec.models", "write ids, selector or both; leave models out for all models"),
    Bad("key-two-secrets", AK, ak(secretName="a", secretRef={"name": "b"}), "spec", "write secretName (Tollway makes the key) or secretRef (the key is yours), not both"),
    Bad("rotation-often", AK, ak(rotation={"every": "59m", "overlap": "1m"}), "spec.rotation", ROTATION),
    Bad("rotation-default-overlap", AK, ak(rotation={"every": "24h"}), "spec.rotation", ROTATION),
    Bad("rotation-overlap", AK, ak(rotation={"every": "2h", "overlap": "2h"}), "spec.rotation", ROTATION),
]  # fmt: skip

UNKNOWN = [
    (MD, md(engien={}), ("spec.engien",)),
    (MD, {"engine": {"name": "v", "imag": "x"}, "foo": None}, ("spec.engine.imag", "spec.foo")),
    (PLAN, {"quotas": [{**quota(), "perod": "Day"}]}, ("spec.quotas[0].perod",)),
    (AK, ak(credits={"monthly": 1, "lowWatermark": 1}), ("spec.credits.lowWatermark",)),
]
"""Kind, spec and the fields that no version has."""

UPDATES = [
    ("id-changed", md(modelId="a"), md(modelId="b"), False),
    ("id-added", md(), md(modelId="x"), False),
    ("id-removed", md(modelId="a"), md(), False),
    ("id-kept", md(modelId="a"), md(modelId="a", rollout="Replace"), True),
    ("id-absent", md(), md(aliases=["b"]), True),
]
"""Old and new ModelDeployment, and whether the change is allowed."""
