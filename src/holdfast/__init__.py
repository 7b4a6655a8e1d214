"""Holdfast: one deduplicating, encrypted, verified repository behind every way in.

The house and its floors are drawn in ``docs/architecture.md``; the stored format in ``docs/format.md``.
"""

__version__ = "0.1.0"
