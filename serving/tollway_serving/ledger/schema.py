"""The tables, as SQLAlchemy Core knows them: read by every part of the ledger that talks to a database.

`migrations` creates them; a test compares the two. Times are milliseconds since the epoch, money micro-credits. JSON
is text on both databases: only Python reads it, but for a PostgreSQL function that unpacks rows sent as one text.
"""

from sqlalchemy import BigInteger, Column, Index, LargeBinary, MetaData, SmallInteger, Table, Text

from tollway_serving.contract.units import UNITS

metadata = MetaData()

meta = Table(
    "tollway_meta",
    metadata,
    Column("name", Text, primary_key=True),  # catalogue_revision, schema_version, compatible_from, usage_from_ms
    Column("value", BigInteger, nullable=False),
)

catalogue = Table(
    "tollway_catalogue",
    metadata,
    Column("kind", Text, primary_key=True),  # model, plan, key
    Column("id", Text, primary_key=True),  # a key's is its SHA-256
    Column("scope", Text, nullable=False),  # the installation that published it
    Column("revision", BigInteger, nullable=False),
    Column("deleted", SmallInteger, nullable=False),  # 1: a tombstone, so that replicas hear of it
    Column("changed_ms", BigInteger, nullable=False),
    Column("body", Text, nullable=False),
    Index("tollway_catalogue_revision", "revision"),
)

subjects = Table(
    "tollway_subjects",
    metadata,
    Column("id", Text, primary_key=True),  # account:NAMESPACE/NAME, key:UID
    Column("first_key_ms", BigInteger),  # of an account: when its first key was made
    Column("state", Text, nullable=False),  # see state.py
)

holds = Table(
    "tollway_holds",
    metadata,
    Column("charge_id", Text, primary_key=True),
    Column("account", Text, nullable=False),
    Column("key_subject", Text),
    Column("owner", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("deadline_ms", BigInteger, nullable=False),
    Column("covered_output", BigInteger, nullable=False),
    Column("covered_prompt", BigInteger),
    Column("body", Text, nullable=False),
    Column("idempotency", Text),  # ops.Repeat, as a list
)

idempotency = Table(
    "tollway_idempotency",
    metadata,
    Column("account", Text, primary_key=True),
    Column("route", Text, primary_key=True),
    Column("name", Text, primary_key=True),  # the client's Idempotency-Key
    Column("attempt", Text, nullable=False),
    Column("body_sha256", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("state", Text, nullable=False),  # idempotency.Record
    Column("charge_id", Text),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("charged_micro", BigInteger, nullable=False),
    Column("headers", Text, nullable=False),
    Column("body", LargeBinary),  # the answer's, where it is kept
    Index("tollway_idempotency_expires", "expires_ms"),
)

usage = Table(
    "tollway_usage",
    metadata,
    Column("charge_id", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),  # of the reserve: decides the period
    Column("settled_ms", BigInteger, nullable=False),
    Column("account", Text, nullable=False),
    Column("key_id", Text, nullable=False),
    Column("key_subject", Text),
    Column("plan", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("status", Text, nullable=False),  # ops.SettleStatus
    Column("http_status", BigInteger, nullable=False),
    Column("error_code", Text),
    Column("estimated", SmallInteger, nullable=False),
    Column("duration_ms", BigInteger, nullable=False),
    Column("first_token_ms", BigInteger),
    Column("fallback_from", Text),
    Column("fallback_depth", BigInteger, nullable=False),
    Column("held_micro", BigInteger, nullable=False),
    Column("charged_micro", BigInteger, nullable=False),
    Column("topup_micro", BigInteger, nullable=False),  # the part of the charge that top-ups paid
    Column("overrun_micro", BigInteger, nullable=False),
    Column("held", Text, nullable=False),  # counts by unit, as JSON
    Column("counts", Text, nullable=False),
    Column("prices", Text, nullable=False),
    Index("tollway_usage_account", "account", "created_ms"),
    Index("tollway_usage_created", "created_ms"),
)

rollups = Table(
    "tollway_rollups",
    metadata,
    Column("account", Text, primary_key=True),
    Column("quarter_ms", BigInteger, primary_key=True),  # start of a quarter of an hour: every time zone's hours fit
    Column("key_id", Text, primary_key=True),
    Column("model_id", Text, primary_key=True),
    Column("endpoint", Text, primary_key=True),
    Column("status", Text, primary_key=True),
    Column("calls", BigInteger, nullable=False),
    Column("charged_micro", BigInteger, nullable=False),
    Column("topup_micro", BigInteger, nullable=False),
    Column("overrun_micro", BigInteger, nullable=False),
    *(Column(unit, BigInteger, nullable=False) for unit in UNITS),
)

grants = Table(
    "tollway_grants",
    metadata,
    Column("account", Text, primary_key=True),
    Column("grant_id", Text, primary_key=True),  # the caller's: the same again changes nothing
    Column("micro", BigInteger, nullable=False),
    Column("note", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

replicas = Table(
    "tollway_replicas",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("metrics_url", Text, nullable=False),
    Column("seen_ms", BigInteger, nullable=False),
)
