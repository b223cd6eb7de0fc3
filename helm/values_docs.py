"""Generate the chart's documentation: `values.yaml` in, the table of README.md and texts of values.schema.json out.

    python helm/values_docs.py          # rewrite both
    python helm/values_docs.py --check  # exit 1 and name the file that is out of date

Every value carries a `# -- ` comment; a comment over a block describes the block as one value. The schema's rules are
written by hand; this script adds descriptions and defaults, and refuses keys that only one of the two files has.
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

CHART = Path(__file__).resolve().parent / "lpm"
BEGIN, END = "<!-- values -->", "<!-- /values -->"
Row = tuple[str, str, str]
_KEY = re.compile(r"^( *)([A-Za-z][A-Za-z0-9]*):")


def comments(text: str) -> dict[tuple[str, ...], str]:
    """Map the path of every commented key to its comment."""
    found: dict[tuple[str, ...], str] = {}
    path: list[str] = []
    pending = ""
    for line in text.splitlines():
        if line.strip().startswith("# -- "):
            pending = line.strip().removeprefix("# -- ")
        elif key := _KEY.match(line):
            path = [*path[: len(key[1]) // 2], key[2]]
            if pending:
                found[tuple(path)] = pending
            pending = ""
    return found


def rows(values: dict[str, Any], notes: dict[tuple[str, ...], str], path: tuple[str, ...] = ()) -> list[Row]:
    """List (path, default, description) of every value.

    Raises:
        ValueError: a value has no comment.
    """
    listed: list[Row] = []
    for key, value in values.items():
        here = (*path, key)
        if here in notes:
            listed.append((".".join(here), json.dumps(value), notes[here]))
        elif isinstance(value, dict) and value:
            listed.extend(rows(value, notes, here))
        else:
            raise ValueError(f"values.yaml: {'.'.join(here)} has no '# -- ' comment: add one above it")
    return listed


def table(listed: list[Row]) -> str:
    """Return the Markdown table of the values."""
    lines = ["| value | default | what it does |", "| --- | --- | --- |"]
    lines += [f"| `{path}` | `{default}` | {note} |" for path, default, note in listed]
    return "\n".join(lines)


def describe(schema: dict[str, Any], listed: list[Row]) -> None:
    """Write descriptions and defaults into the schema.

    Raises:
        ValueError: the schema lacks a value, or has one that values.yaml does not.
    """
    seen = set()
    for path, default, note in listed:
        node = schema
        for part in path.split("."):
            if part not in node.get("properties", {}):
                raise ValueError(f"values.schema.json: {path} is missing: add a rule for it")
            node = node["properties"][part]
            seen.add(id(node))
        node["description"], node["default"] = note, json.loads(default)
    _refuse_unknown(schema, seen, ())


def _refuse_unknown(node: dict[str, Any], seen: set[int], path: tuple[str, ...]) -> None:
    for key, child in node.get("properties", {}).items():
        if id(child) in seen:
            if "default" not in child:  # a described block is one value; its inner keys need no description
                _refuse_unknown(child, seen, (*path, key))
        elif (*path, key) != ("global",):  # Helm itself passes this one
            raise ValueError(f"values.schema.json: {'.'.join((*path, key))} is not in values.yaml: remove it")


def render(chart: Path) -> dict[Path, str]:
    """Return the expected contents of README.md and values.schema.json."""
    text = (chart / "values.yaml").read_text()
    listed = rows(yaml.safe_load(text), comments(text))
    schema = json.loads((chart / "values.schema.json").read_text())
    describe(schema, listed)
    readme = (chart / "README.md").read_text()
    before, _, rest = readme.partition(BEGIN)
    after = rest.partition(END)[2]
    return {
        chart / "README.md": f"{before}{BEGIN}\n{table(listed)}\n{END}{after}",
        chart / "values.schema.json": json.dumps(schema, indent=2) + "\n",
    }


def main() -> int:
    """Rewrite or check both files and print which were out of date; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 when a file is out of date")
    options = parser.parse_args()
    stale = [path for path, text in render(CHART).items() if path.read_text() != text]
    for path in stale:
        print(f"{path.name} is out of date: run python helm/values_docs.py" if options.check else f"wrote {path}")
        if not options.check:
            path.write_text(render(CHART)[path])
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
