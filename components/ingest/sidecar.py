"""Reads licence and consent of a recording from the YAML file next to it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

FOLDER_WIDE: Final = "consent.yaml"
"""Name of the sidecar that applies to its folder and the folders below it."""
_CAMERAS: Final = ("a", "b", "two_shot")
_KEYS: Final = ("licence", "consent_ref", "conversation_id", "camera", "person_hint")
_MAX_BYTES: Final = 65_536


@dataclass(frozen=True, kw_only=True, slots=True)
class Sidecar:
    """Metadata of a recording that its owner provides."""

    licence: str = ""
    """Terms of use; empty = unknown."""
    consent_ref: str = ""
    """Where the consent of the people in it is filed; empty = unknown, "none on file..." = nobody has consented."""
    conversation_id: str | None = None
    """Shared by recordings of the same conversation on one clock."""
    camera: str | None = None
    """Who is visible: a, b or two_shot."""
    person_hint: str | None = None
    """Name of the visible person, if there is just one."""


def read_sidecar(file: Path, root: Path) -> Sidecar | None:
    """Merge a file's own `<file>.yaml` over the nearest `consent.yaml` up to `root`; None if there is neither.

    Raises:
        ValueError: a sidecar cannot be read or has an unknown key or value, or licence or consent_ref is missing.
    """
    own = file.with_name(file.name + ".yaml")
    found = [path for path in (_folder_sidecar(file, root), own) if path is not None and path.is_file()]
    if not found:
        return None
    texts: dict[str, str] = {}
    for path in found:
        texts |= _read(path, root)
    for key in ("licence", "consent_ref"):
        if not texts.get(key):
            raise ValueError(f"sidecar {' and '.join(path.name for path in reversed(found))} lacks {key}: add it")
    return Sidecar(
        licence=texts["licence"],
        consent_ref=texts["consent_ref"],
        conversation_id=texts.get("conversation_id"),
        camera=texts.get("camera"),
        person_hint=texts.get("person_hint"),
    )


def _folder_sidecar(file: Path, root: Path) -> Path | None:
    for folder in file.parents:
        if (folder / FOLDER_WIDE).is_file():
            return folder / FOLDER_WIDE
        if folder == root:
            break
    return None


def _read(path: Path, root: Path) -> dict[str, str]:
    name = path.relative_to(root).as_posix()
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"sidecar {name} is a link out of the source folder: put a real file there")
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"sidecar {name} is larger than {_MAX_BYTES} bytes: keep only {', '.join(_KEYS)}")
    data = path.read_bytes()
    try:
        values = yaml.safe_load(data.decode())
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"sidecar {name} is not UTF-8 text: see line {line}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"sidecar {name} is not valid YAML: {_locate(error, data.decode())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"sidecar {name} must be a mapping with licence and consent_ref")
    unknown = sorted(str(key) for key in values if key not in _KEYS)
    if unknown:
        raise ValueError(f"sidecar {name} has an unknown key {unknown[0]}: valid keys are {', '.join(_KEYS)}")
    texts = {key: str(value).strip() for key, value in values.items() if value is not None}
    if texts.get("camera", "a") not in _CAMERAS:
        raise ValueError(f"sidecar {name} has camera {texts['camera']!r}: choose one of {', '.join(_CAMERAS)}")
    return texts


def _locate(error: yaml.YAMLError, text: str) -> str:
    """Describe a YAML error with its line and column, both counted from 1."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark, problem = error.problem_mark, f"{error.context or ''} {error.problem or ''}".strip()
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    if isinstance(error, yaml.reader.ReaderError):
        before = text[: error.position]
        column = len(before) - before.rfind("\n")
        return f"line {before.count(chr(10)) + 1}, column {column}: a control character"
    return str(error).splitlines()[0]
