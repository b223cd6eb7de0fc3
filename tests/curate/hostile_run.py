"""Ingest and curate a folder of hostile files in a process of its own: `python -m tests.curate.hostile_run FOLDER`."""

import json
import resource
import shutil
import sys
import time
from pathlib import Path

from components.curate.config import CurationConfig
from components.curate.step import curate
from components.ingest.accept import stop_prober
from components.ingest.config import IngestConfig
from components.ingest.step import ingest
from lpm_model.progress import NoProgress


def accept_all(folder: Path, raw: Path) -> dict[str, str]:
    """Make a raw/ folder of every regular file, as if ingest had accepted all; return names by path in raw/."""
    (raw / "media").mkdir(parents=True)
    names, lines = {}, []
    files = sorted(
        path for path in folder.iterdir() if path.is_file() and not path.is_symlink() and path.suffix != ".yaml"
    )
    for number, file in enumerate(files):
        target = raw / "media" / f"s{number:02d}{file.suffix}"
        shutil.copyfile(file, target)
        names[f"media/{target.name}"] = file.name
        line = {"source_id": target.stem, "file": f"media/{target.name}", "sha256": ""}
        line |= {"bytes": target.stat().st_size, "origin": "folder", "licence": "CC0-1.0", "consent_ref": "test"}
        lines.append(json.dumps(line | dict.fromkeys(("conversation_id", "camera", "person_hint"))))
    (raw / "sources.jsonl").write_text("\n".join(lines))
    return names


def main(home: Path, autoencoder: str) -> None:
    """Ingest and curate `home`/in; print the results as one line of JSON."""
    started = time.monotonic()
    taken = ingest(str(home / "in"), home / "raw", IngestConfig(), NoProgress())
    ingest_s = time.monotonic() - started
    stop_prober()
    names = accept_all(home / "in", home / "all")
    config = CurationConfig(
        autoencoder=autoencoder, workers=1, validate=False, require_audio=False, require_reference=False,
        min_retention=0.0,
    )  # fmt: skip
    report = curate(home / "all", home / "dataset", config, NoProgress())
    result = {
        "ingest_s": ingest_s,
        "accepted": [
            line["file"] for line in map(json.loads, (home / "raw" / "sources.jsonl").read_text().splitlines())
        ],
        "refused": {one.file: one.reason for one in taken.rejected},
        "rejected": {names[item["file"]]: item["reason"] for item in report.rejected},
        "clips": report.clips,
        "timing": json.loads((home / "dataset" / "timing.json").read_text()),
        "peak_mb": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
