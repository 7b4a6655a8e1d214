"""Manifests can be deleted: how often an account did so, and what was there before; numbers that are given once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("accounts", sa.Column("deletions", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("files", sa.Column("deletions", sa.BigInteger, nullable=False, server_default="0"))
    op.add_column("manifests", sa.Column("deletion", sa.BigInteger))
    op.create_index("ix_manifests_deletion", "manifests", ["deletion"])
    op.add_column("shelves", sa.Column("strangers", sa.Text, nullable=False, server_default=""))
    counters = op.create_table(
        "counters", sa.Column("name", sa.Text, primary_key=True), sa.Column("value", sa.BigInteger, nullable=False)
    )
    newest = {name: op.get_bind().execute(sa.text(f"SELECT max(id) FROM {name}")).scalar_one_or_none()
              for name in ("accounts", "manifests")}  # fmt: skip
    op.bulk_insert(counters, [{"name": name, "value": value or 0} for name, value in {**newest, "owed": 0}.items()])
