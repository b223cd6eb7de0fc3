"""Which test modules the fast lane leaves to `make test`."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAVY = ()
"""Files and folders whose tests train, compile, render, or start processes, servers and pipelines. A single slow test
in another module is marked by hand: `@pytest.mark.heavy`."""


def is_heavy(path: Path) -> bool:
    """Whether a test module belongs to the heavy ones."""
    return any(path == ROOT / name or ROOT / name in path.parents for name in HEAVY)
