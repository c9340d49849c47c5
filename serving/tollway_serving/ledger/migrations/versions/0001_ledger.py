"""The first schema: catalogue, subjects, holds, usage, roll-ups, grants, replicas. Run by Alembic."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

UNITS = (
    "requests",
    "input_tokens",
    "output_tokens",
    "characters",
    "audio_ms",
    "images",
    "pixels",
    "video_ms",
    "music_ms",
    "pages",
    "files",
)


def text(name: str, *, null: bool = False, key: bool = False) -> "sa.Column[str]":
    return sa.Column(name, sa.Text, nullable=null, primary_key=key)


def big(name: str, *, null: bool = False, key: bool = False) -> "sa.Column[int]":
    return sa.Column(name, sa.BigInteger, nullable=null, primary_key=key, autoincrement=False)


def small(name: str) -> "sa.Column[int]":
    return sa.Column(name, sa.SmallInteger, nullable=False)


def upgrade() -> None:
    meta = op.create_table("tollway_meta", text("name", key=True), big("value"))
    op.bulk_insert(
        meta,
        [
            {"name": "catalogue_revision", "value": 0},
            {"name": "schema_version", "value": 1},
            {"name": "compatible_from", "value": 1},
            {"name": "usage_from_ms", "value": 0},  # usage rows from here on are all there
        ],
    )
    op.create_table(
        "tollway_catalogue",
        text("kind", key=True),
        text("id", key=True),
        text("scope"),
        big("revision"),
        small("deleted"),
        big("changed_ms"),
        text("body"),
    )
    op.create_index("tollway_catalogue_revision", "tollway_catalogue", ["revision"])
    op.create_table("tollway_subjects", text("id", key=True), big("first_key_ms", null=True), text("state"))
    op.create_table(
        "tollway_holds",
        text("charge_id", key=True),
        text("account"),
        text("key_subject", null=True),
        text("owner"),
        text("model_id"),
        big("deadline_ms"),
        big("covered_output"),
        big("covered_prompt", null=True),
        text("body"),
    )
    op.create_table(
        "tollway_usage",
        text("charge_id", key=True),
        text("request_id"),
        big("created_ms"),
        big("settled_ms"),
        text("account"),
        text("key_id"),
        text("key_subject", null=True),
        text("plan"),
        text("endpoint"),
        text("model_id"),
        big("revision"),
        text("status"),
        big("http_status"),
        text("error_code", null=True),
        small("estimated"),
        big("duration_ms"),
        big("first_token_ms", null=True),
        text("fallback_from", null=True),
        big("fallback_depth"),
        big("held_micro"),
        big("charged_micro"),
        big("topup_micro"),
        big("overrun_micro"),
        text("held"),
        text("counts"),
        text("prices"),
    )
    op.create_index("tollway_usage_account", "tollway_usage", ["account", "created_ms"])
    op.create_index("tollway_usage_created", "tollway_usage", ["created_ms"])
    op.create_table(
        "tollway_rollups",
        text("account", key=True),
        big("quarter_ms", key=True),
        text("key_id", key=True),
        text("model_id", key=True),
        text("endpoint", key=True),
        text("status", key=True),
        big("calls"),
        big("charged_micro"),
        big("topup_micro"),
        big("overrun_micro"),
        *(big(unit) for unit in UNITS),
    )
    op.create_table(
        "tollway_grants",
        text("account", key=True),
        text("grant_id", key=True),
        big("micro"),
        text("note"),
        big("created_ms"),
    )
    op.create_table("tollway_replicas", text("owner", key=True), text("metrics_url"), big("seen_ms"))
