"""What `tollway operator` can be told, and how TOLLWAY_* variables say it: used by `main` and the command line."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tollway_operator.kuberay_settings import KubeRaySettings
from tollway_operator.kuberay_settings import load as load_kuberay
from tollway_operator.settings import Settings
from tollway_serving.ledger.tidy import usage_days

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class OperatorSettings:
    """Each field is also a variable, TOLLWAY_ and the field's name in capitals; those of `reconcile` likewise."""

    database_url: str = field(repr=False)  # holds a password; else the file `database-url` in TOLLWAY_SECRETS_DIR
    reconcile: Settings
    usage_days: int | None = None  # how long the ledger keeps single calls; 0 or None: for ever
    scope: str = "default"  # of this installation among those that share the database
    namespaces: tuple[str, ...] = ()  # watched, separated by commas; empty: all of the cluster
    namespace: str = "tollway"  # our own: the Lease, the memory and the providers' keys; in a pod, the pod's
    ray_address: str = "http://127.0.0.1:8265"
    ray_token: str | None = field(default=None, repr=False)
    kuberay: KubeRaySettings | None = None  # TOLLWAY_KUBERAY_FILE; None: the existing Ray at `ray_address`
    deployment: str = ""  # the operator's own Deployment: with it goes what the operator makes in its namespace
    listen: str = "0.0.0.0:8080"  # probes and metrics
    identity: str | None = None  # in the Lease; a pod's name lets its restarted container go on at once
    lease_name: str = "tollway-operator"
    lease_seconds: float = 15.0
    providers_secret: str = "tollway-providers"  # noqa: S105 - a name
    sources_secret: str = "tollway-sources"  # noqa: S105 - a name
    memory_name: str = "tollway-memory"
    log_level: str = "info"


def settings_from_env(env: Mapping[str, str]) -> OperatorSettings:
    """ValueError, one clear line, for a variable that is missing or wrong."""

    def read(name: str, default: T, parse: Callable[[str], T]) -> T:
        text = env.get(f"TOLLWAY_{name}", "").strip()
        if not text:
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise ValueError(f"TOLLWAY_{name}={text}: {error}") from None

    none: tuple[str, ...] = ()
    database_url = env.get("TOLLWAY_DATABASE_URL", "").strip() or _secret_file(env, "database-url")
    if not database_url:
        raise ValueError("Set TOLLWAY_DATABASE_URL, such as postgresql://USER:PASSWORD@HOST:5432/tollway")
    base_url = read("BASE_URL", "", _url)
    if not base_url:
        raise ValueError("Set TOLLWAY_BASE_URL: what clients use, such as https://models.example.com/v1")
    default = Settings(base_url=base_url)
    namespace = read("NAMESPACE", _pod_namespace(), str)
    kuberay = read("KUBERAY_FILE", None, lambda path: load_kuberay(Path(path), namespace))
    reconcile = Settings(
        base_url=base_url,
        models_url=read("MODELS_URL", default.models_url, _url),
        pods=kuberay.pod_defaults if kuberay else None,
        gateway_replicas=kuberay.gateway.replicas
        if kuberay
        else read("GATEWAY_REPLICAS", default.gateway_replicas, _at_least_one),
        gateway_cpus=read("GATEWAY_CPUS", default.gateway_cpus, float),
        gateway_max_ongoing_requests=read(
            "GATEWAY_MAX_ONGOING_REQUESTS", default.gateway_max_ongoing_requests, _at_least_one
        ),
        accelerators=frozenset(read("ACCELERATORS", none, _names)),
        allow_mass_revocation=read("ALLOW_MASS_REVOCATION", False, _yes_or_no),
    )
    return OperatorSettings(
        database_url=database_url,
        reconcile=reconcile,
        usage_days=read("USAGE_DAYS", None, lambda text: usage_days(int(text))),
        scope=read("SCOPE", "default", str),
        namespaces=read("NAMESPACES", none, _names),
        namespace=namespace,
        ray_address=read("RAY_ADDRESS", "http://127.0.0.1:8265", _url),
        ray_token=env.get("TOLLWAY_RAY_TOKEN", "").strip() or _secret_file(env, "ray-token"),
        kuberay=kuberay,
        deployment=read("DEPLOYMENT", "", str),
        listen=read("LISTEN", "0.0.0.0:8080", _listen),
        identity=env.get("TOLLWAY_IDENTITY", "").strip() or None,
        lease_name=read("LEASE_NAME", "tollway-operator", str),
        lease_seconds=read("LEASE_SECONDS", 15.0, _lease_seconds),
        providers_secret=read("PROVIDERS_SECRET", "tollway-providers", str),
        sources_secret=read("SOURCES_SECRET", "tollway-sources", str),
        memory_name=read("MEMORY_NAME", "tollway-memory", str),
        log_level=read("LOG_LEVEL", "info", _log_level),
    )


def _secret_file(env: Mapping[str, str], name: str) -> str | None:
    folder = env.get("TOLLWAY_SECRETS_DIR")
    path = Path(folder) / name if folder else None
    return path.read_text().strip() or None if path is not None and path.is_file() else None


def _pod_namespace() -> str:
    path = SERVICE_ACCOUNT / "namespace"
    return path.read_text().strip() if path.is_file() else "tollway"


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    return () if names == ("*",) else names


def _at_least_one(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError("must be at least 1")
    return number


def _lease_seconds(text: str) -> float:
    number = float(text)
    if not 1 <= number <= 300:
        raise ValueError("must be between 1 and 300")
    return number


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("yes", "no", "true", "false"):
        raise ValueError("write yes or no")
    return text.lower() in ("yes", "true")


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise ValueError("must begin with http:// or https://")
    return text.rstrip("/")


def _listen(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("write HOST:PORT")
    return text


def _log_level(text: str) -> str:
    if text.lower() not in ("debug", "info", "warning", "error"):
        raise ValueError("write debug, info, warning or error")
    return text.lower()
