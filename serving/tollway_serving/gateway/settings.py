"""The gateway's settings: read once at start by `app.make_app`, from the environment and from what a caller overrides.

Secrets are not settings: `secrets` reads them from files and again when they change.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, IPvAnyNetwork

PREFIX = "TOLLWAY_"


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class Settings(BaseModel):
    """Each field is also the environment variable TOLLWAY_<FIELD IN UPPER CASE>."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    database_url: str | None = None  # else the file `database-url` in the secrets folder
    secrets_dir: Path | None = None
    providers_dir: Path | None = None  # remote providers' keys; by default `providers` in the secrets folder
    metrics_host: str = "127.0.0.1"
    metrics_port: int = Field(default=0, ge=0, le=65535)  # 0: any free port
    metrics_address: str | None = None  # host that Prometheus reaches this replica by; by default metrics_host
    max_body_bytes: int = Field(default=20 * 1024 * 1024, ge=1024)
    body_timeout_s: float = Field(default=30.0, gt=0)  # from the headers to the last byte of a request's body
    image_bytes: int = Field(default=20 * 1024 * 1024, ge=1024)  # of all images behind one request's links
    image_timeout_s: float = Field(default=10.0, gt=0)  # until all of them are here
    # Networks that such links may point into though they are not public ones: 10.1.0.0/16,fd00::/8
    image_networks: Annotated[tuple[IPvAnyNetwork, ...], BeforeValidator(_split)] = ()
    heartbeat_s: float = Field(default=10.0, gt=0)  # a stream that is silent for longer gets a comment
    max_requests: int = Field(default=2000, ge=1)  # in progress at once in this replica
    client_address_header: str | None = (
        None  # its last element is the client's address; set only behind a trusted proxy
    )
    # How long a start may take until the proxy of this node, which starts at the same time, knows the models
    models_wait_s: float = Field(default=0.0, ge=0)
    address_requests: int = Field(default=5000, ge=1)  # per client address in a window
    address_window_s: int = Field(default=600, ge=1)
    access_log: bool = True
    # Ray Serve appends x-request-id to every answer itself: there the gateway must not, or clients get two.
    request_id_header: bool = True

    @classmethod
    def load(cls, overrides: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None) -> "Settings":
        """Overrides win over the environment. Raises pydantic.ValidationError with the field's name."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {
            name: environ[key]
            for name in cls.model_fields
            if (key := PREFIX + name.upper()) in environ and environ[key]
        }
        return cls.model_validate(values | dict(overrides or {}))
