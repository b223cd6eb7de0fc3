"""How ingest names recordings."""

import re
from pathlib import PurePosixPath
from typing import Final

_LETTERS: Final = 60
DIGITS: Final = 8
"""Digits of the digest at the end of a source id."""


def stem_of(file: str) -> str:
    """Return the part of a source id that comes from a file's path: letters, digits, '_' and '-'.

    Args:
        file: path in the source with forward slashes; its extension is ignored.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", file.removesuffix(PurePosixPath(file).suffix)).strip("_")
    return stem[:_LETTERS] or "video"


def source_id_of(file: str, sha256: str) -> str:
    """Return a recording's source id: safe in paths, and different for different bytes."""
    return f"{stem_of(file)}-{sha256[:DIGITS]}"
