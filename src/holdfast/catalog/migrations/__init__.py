"""The catalog's history, step by step, for Alembic."""
