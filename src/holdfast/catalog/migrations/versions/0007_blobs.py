"""Buckets, what others may do in them, their blobs, and contents that no blob names."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    _buckets()
    _grants()
    op.create_table(
        "blobs",
        sa.Column("bucket", Number, sa.ForeignKey("buckets.id", name="fk_blobs_bucket"), primary_key=True,
                  autoincrement=False),
        sa.Column("key", sa.LargeBinary, primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("sha1", sa.Text, nullable=False),
        sa.Column("modified_ns", sa.BigInteger, nullable=False),
        sa.Column("place", sa.Text, nullable=False),
        sa.Column("chunks", sa.LargeBinary, nullable=False),
        sa.Column("depth", sa.Integer, nullable=False),
    )  # fmt: skip
    op.create_index("ix_blobs_modified", "blobs", ["bucket", "modified_ns", "key"])
    op.create_table(
        "blob_leftovers",
        sa.Column("place", sa.Text, primary_key=True),
        sa.Column("filesystem", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger),
        sa.Column("due_ns", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_blob_leftovers_due_ns", "blob_leftovers", ["due_ns"])
    op.execute("INSERT INTO counters (name, value) VALUES ('buckets', 0)")


def _buckets() -> None:
    op.create_table(
        "buckets",
        sa.Column("id", Number, primary_key=True, autoincrement=False),
        sa.Column("account", Number, sa.ForeignKey("accounts.id", name="fk_buckets_account", ondelete="SET NULL"),
                  nullable=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("filesystem", sa.Text, nullable=False),
        sa.Column("quota_bytes", sa.BigInteger),
        sa.Column("quota_objects", sa.BigInteger),
        sa.Column("bytes", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("objects", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("name", name="uq_buckets_name"),
        sa.CheckConstraint("filesystem IN ('disk', 'object', 'repository')", name=op.f("ck_buckets_filesystem")),
    )  # fmt: skip
    op.create_index("ix_buckets_account", "buckets", ["account"])


def _grants() -> None:
    op.create_table(
        "bucket_grants",
        sa.Column("id", Number, primary_key=True),
        sa.Column("bucket", Number, sa.ForeignKey("buckets.id", name="fk_bucket_grants_bucket", ondelete="CASCADE"),
                  nullable=False),
        sa.Column("account", Number, sa.ForeignKey("accounts.id", name="fk_bucket_grants_account", ondelete="CASCADE"),
                  nullable=True),
        sa.Column("allowed", sa.Text, nullable=False),
    )  # fmt: skip
    op.create_index("ix_bucket_grants_bucket", "bucket_grants", ["bucket"])
    op.create_index("ix_bucket_grants_account", "bucket_grants", ["account"])
