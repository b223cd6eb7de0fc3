"""The DVC side of the pipeline: dvc.yaml from the table of steps, and the code digests that its stages depend on.

DVC compares files byte by byte, so a stage that depends on source files reruns after a changed comment. Instead, the
stage `code` runs first in every `dvc repro` and writes one file per step with the code part of the step's cache key:
digests of the code that the step reaches and versions of the packages that can change its result. Of the code, the
stage of a step depends on that file alone, and so reruns exactly when `lpm run` would rerun the step.
"""

from pathlib import Path
from typing import Any

import yaml

from components.runtime.cache_keys import package_versions
from components.runtime.code_closure import ROOT, code_closure
from components.runtime.steps import STEPS, Step
from lpm_model.files import write_json

WORKSPACE = Path("workspace")
"""Folder of the stages' outputs."""
CODE = WORKSPACE / "code"
"""Folder of the code digests."""
CODE_STAGE = "code"
"""Stage that writes the code digests."""
_HEADER = (
    "# Written by `python -m pipelines.dvc_stages`: the six steps for `dvc repro`, each after the digest of its code.\n"
    "# `dvc exp run -S train.steps=400` changes one setting, `lpm config --all profile=small > params.yaml` all.\n"
)


def write_code_digests(folder: Path) -> None:
    """Write FOLDER/VERB.json for every step: digests of its code and versions of the packages it depends on."""
    folder.mkdir(parents=True, exist_ok=True)
    for verb, step in STEPS.items():
        values = {"files": code_closure(step.module).files, "packages": package_versions(step.module)}
        write_json(folder / f"{verb}.json", values)


def dvc_stages() -> dict[str, Any]:
    """Return the content of dvc.yaml: the stage `code`, then one stage per step."""
    digests = {verb: (CODE / f"{verb}.json").as_posix() for verb in STEPS}
    code = {
        "cmd": f"lpm code-digest --out {CODE.as_posix()}",
        "always_changed": True,  # takes a second; DVC then compares the written files
        "outs": [{path: {"cache": False}} for path in digests.values()],
    }
    artifacts = {"dataset": ("dataset", "dataset"), "lpm-base": ("base", "model"), "lpm-online": ("online", "model")}
    return {
        "stages": {CODE_STAGE: code, **{verb: _stage(step, digests[verb]) for verb, step in STEPS.items()}},
        "metrics": [_path(f"{STEPS['evaluate'].folder}/report.json")],
        "artifacts": {name: {"path": _path(folder), "type": kind} for name, (folder, kind) in artifacts.items()},
    }


def dvc_yaml() -> str:
    """Return the text of dvc.yaml."""
    return _HEADER + yaml.safe_dump(dvc_stages(), sort_keys=False, width=1000)


def _stage(step: Step, code_digest: str) -> dict[str, Any]:
    folders = {**step.inputs, step.output: step.folder}
    options = [f"--{name} {_path(folder)}" for name, folder in folders.items()]
    return {
        "cmd": " ".join(["lpm", step.verb, "--params params.yaml", *options]),
        "deps": [code_digest, *(_path(folder) for folder in step.inputs.values())],
        "params": ["data", step.verb] if step.verb == "ingest" else [step.verb],
        "outs": [_path(step.folder)],
    }


def _path(folder: str) -> str:
    return (WORKSPACE / folder).as_posix()


if __name__ == "__main__":
    (ROOT / "dvc.yaml").write_text(dvc_yaml(), encoding="utf-8")
