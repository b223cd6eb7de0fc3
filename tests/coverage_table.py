"""Prints the line coverage of the last run with `--cov`, one line a folder: `python -m tests.coverage_table`."""

from collections import defaultdict
from pathlib import Path

import coverage

ROOT = Path(__file__).resolve().parents[1]
DEPTH = 2
"""Folders of a path that name a line of the table."""


def table() -> str:
    """Return covered and all lines of every folder, and the total."""
    data = coverage.Coverage(config_file=str(ROOT / "pyproject.toml"))
    data.load()
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for file in sorted(name for name in data.get_data().measured_files() if name.endswith(".py")):
        parts = Path(file).relative_to(ROOT).parts
        _, lines, _, missing, _ = data.analysis2(file)
        for folder in ("/".join(parts[:-1][:DEPTH]), "total"):
            counts[folder][0] += len(lines) - len(missing)
            counts[folder][1] += len(lines)
    rows = sorted((name, *pair) for name, pair in counts.items() if pair[1] and name != "total")
    return "\n".join(
        f"{name:<28}{covered:>7} of {lines:>6} lines{covered / lines:>7.1%}"
        for name, covered, lines in [*rows, ("total", *counts["total"])]
    )


if __name__ == "__main__":
    print(table())
