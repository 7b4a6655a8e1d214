"""Where objects lie in a place that only knows paths: as in a folder, so that a copied folder can be opened anywhere.

Data objects have a folder for their first two digits between: ``data/ab/abcd…``. All others lie by their names.
"""

from __future__ import annotations

from holdfast.storage.base import is_name


def path_of(name: str) -> str:
    """The path of an object below the storage's own place; a checked name is given."""
    folder, _, digits = name.partition("/")
    return f"data/{digits[:2]}/{digits}" if folder == "data" else name


def name_of(path: str, folder: str) -> str | None:
    """The name of the object of this folder that lies at a path; None when no object would lie there."""
    parts = path.split("/")
    name = f"{folder}/{parts[-1]}"
    return name if is_name(name) and path_of(name) == path else None
