"""Requests with an Idempotency-Key: their records, and which hold belongs to one. Run by Alembic.

A release that knows nothing of it still works with this schema: it makes no records and writes no value for the column.
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tollway_idempotency",
        sa.Column("account", sa.Text, primary_key=True, nullable=False),
        sa.Column("route", sa.Text, primary_key=True, nullable=False),
        sa.Column("name", sa.Text, primary_key=True, nullable=False),
        sa.Column("attempt", sa.Text, nullable=False),
        sa.Column("body_sha256", sa.Text, nullable=False),
        sa.Column("owner", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("charge_id", sa.Text, nullable=True),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("charged_micro", sa.BigInteger, nullable=False),
        sa.Column("headers", sa.Text, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=True),
    )
    op.create_index("tollway_idempotency_expires", "tollway_idempotency", ["expires_ms"])
    op.add_column("tollway_holds", sa.Column("idempotency", sa.Text, nullable=True))
    op.execute("update tollway_meta set value = 2 where name = 'schema_version'")
