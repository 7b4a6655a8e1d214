"""When a manifest was deleted: its row stays until what it alone held was given up."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("manifests", sa.Column("deleted_ns", sa.BigInteger))
