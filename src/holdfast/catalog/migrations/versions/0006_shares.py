"""One-time shares, and their downloads that are under way."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "shares",
        sa.Column("id", Number, primary_key=True, autoincrement=False),
        sa.Column(
            "account", Number, sa.ForeignKey("accounts.id", name="fk_shares_account", ondelete="SET NULL"),
            nullable=True,
        ),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("file", sa.Text),
        sa.Column("password", sa.Text),
        sa.Column("downloads", sa.BigInteger, nullable=False),
        sa.Column("taken", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("claimed", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("created_ns", sa.BigInteger, nullable=False),
        sa.Column("expires_ns", sa.BigInteger),
        sa.Column("ended_ns", sa.BigInteger),
        sa.UniqueConstraint("digest", name="uq_shares_digest"),
        sa.UniqueConstraint("file", name="uq_shares_file"),
    )  # fmt: skip
    op.create_index("ix_shares_account", "shares", ["account"])
    for name, column, condition in (
        ("ix_shares_to_remove", "ended_ns", "file IS NOT NULL"),
        ("ix_shares_to_expire", "expires_ns", "ended_ns IS NULL"),
    ):
        where = sa.text(condition)
        op.create_index(name, "shares", [column], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "share_claims",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column(
            "share", Number, sa.ForeignKey("shares.id", name="fk_share_claims_share", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("final", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("renewed_ns", sa.BigInteger, nullable=False),
    )  # fmt: skip
    op.create_index("ix_share_claims_share", "share_claims", ["share"])
    op.create_index("ix_share_claims_renewed_ns", "share_claims", ["renewed_ns"])
    op.execute("INSERT INTO counters (name, value) VALUES ('shares', 0)")
