"""What ingest calls a recording."""

import re
from pathlib import PurePosixPath
from typing import Final

_LETTERS: Final = 60
DIGITS: Final = 8
"""Of the digest, at the end of the name."""


def stem_of(file: str) -> str:
    """What a file's path in its source, without the ending, becomes in its name: letters, digits, '_' and '-'.

    Args:
        file: path with forward slashes.
    """
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", file.removesuffix(PurePosixPath(file).suffix)).strip("_")
    return stem[:_LETTERS] or "video"


def source_id_of(file: str, sha256: str) -> str:
    """Name of a recording: safe in paths, and unique among different bytes."""
    return f"{stem_of(file)}-{sha256[:DIGITS]}"
