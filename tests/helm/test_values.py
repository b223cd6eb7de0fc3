"""values.yaml, its schema, the README table and the examples agree."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "lpm"
SCRIPT = ROOT / "helm" / "values_docs.py"


def objects(node: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every object of the schema that declares its own properties."""
    if isinstance(node, dict):
        if node.get("type") == "object" and "properties" in node:
            yield path, node
        for key, child in node.get("properties", {}).items():
            yield from objects(child, f"{path}.{key}")


def test_documentation_is_up_to_date() -> None:
    result = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_schema_is_valid_and_rejects_unknown_keys() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    declared = dict(objects(schema))
    assert len(declared) >= 15
    assert [path for path, node in declared.items() if node.get("additionalProperties") is not False] == []


@pytest.mark.parametrize("name", ["values.yaml", "values-dev.yaml", "values-cluster.yaml"])
def test_examples_match_the_schema(name: str) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / name).read_text())
    jsonschema.Draft7Validator(schema).validate(values)
    assert "latest" not in json.dumps(values)


def test_values_docs_names_a_value_without_comment_or_rule(tmp_path: Path) -> None:
    chart = tmp_path / "lpm"
    chart.mkdir()
    for name in ("values.yaml", "values.schema.json", "README.md"):
        (chart / name).write_text((CHART / name).read_text())
    script = tmp_path / "values_docs.py"
    script.write_text(SCRIPT.read_text())

    def message(addition: str) -> str:
        (chart / "values.yaml").write_text((CHART / "values.yaml").read_text() + addition)
        result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
        assert result.returncode != 0
        return result.stderr

    assert "colour has no '# -- ' comment" in message("colour: red\n")
    assert "colour is missing: add a rule" in message("# -- Colour.\ncolour: red\n")
