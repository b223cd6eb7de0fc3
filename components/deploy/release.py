"""The release folder: only file types that cannot carry code, each checked against its extension."""

import json
import shutil
from pathlib import Path

from components.runtime.runner import link_tree
from lpm_model.digests import model_digest

ALLOWED = (".safetensors", ".json", ".png", ".md")
"""File types a model folder may contain."""


def check_model_folder(folder: Path) -> None:
    """Reject a folder that contains anything but weights, JSON, images and model cards.

    Raises:
        ValueError: the first file that is not allowed or whose content does not match its extension.
    """
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(f"{folder} is not a model folder: it needs config.json and at least one .safetensors file")
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise ValueError(f"{path} is a link: put the file itself into the model folder")
        if path.is_dir():
            continue
        if path.suffix not in ALLOWED:
            raise ValueError(
                f"{path} must not be served: only {', '.join(ALLOWED)} are allowed (a pickle can run code); "
                "save weights as safetensors"
            )
        _check_content(path)


def write_release(model: Path, release: Path, digest: str) -> None:
    """Hard-link a model folder to the release folder and verify its digest.

    Raises:
        ValueError: the folder's content does not match the digest.
    """
    link_tree(model, release)
    found = model_digest(release)
    if found != digest:
        shutil.rmtree(release)
        raise ValueError(f"{model} has digest {found[:12]}, registered is {digest[:12]}: register the model again")


def _check_content(path: Path) -> None:
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="np") as handle:
                handle.keys()
        except SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file ({error}): save the weights again") from error
    elif path.suffix == ".json":
        try:
            json.loads(path.read_text())
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path} is not JSON ({error})") from error
    elif path.suffix == ".png":
        with path.open("rb") as handle:
            if handle.read(8) != b"\x89PNG\r\n\x1a\n":
                raise ValueError(f"{path} is not a PNG image")
    else:
        try:
            path.read_text()
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not text ({error})") from error
