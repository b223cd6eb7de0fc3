"""A rendered conversation against its ground truth: clocks, states and the audio of each side."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from components.curate.clips.decide import reject_reasons
from components.curate.config import CurationConfig, IntervalConfig, StateConfig, Thresholds
from components.curate.labels.cameras import Recording, camera_offset, find_cameras, gap_on_timeline
from components.curate.labels.conversation import offscreen_speech
from components.curate.labels.pairing import label_source
from components.curate.run.analyse import analyse
from components.curate.run.analysis_file import load_analysis, load_fingerprint, save_analysis
from components.curate.run.links import find_partners
from components.curate.video.analysis import Analysis
from components.curate.video.decode import audio_track, video_frames
from components.curate.video.duplicates import find_copies, frames_in
from components.dataset.sources import Source
from components.dataset.states import DISCARD, IDLE, SPEAK
from components.performer.media import write_mp4


@pytest.fixture(scope="module")
def analyses(sides: list[Path], config: CurationConfig) -> list[Analysis]:
    def analyse_file(file: Path) -> Analysis:
        facts = {"sha256": "", "bytes": 0, "origin": "performer", "licence": "", "consent_ref": ""}
        return analyse(file.parent, Source(source_id=file.stem, file=file.name, **facts), config)

    return [analyse_file(file) for file in sides]


def ground_truth_of(analysis: Analysis, conversation: Path) -> dict[str, np.ndarray]:
    with np.load(conversation / "ground_truth" / f"{analysis.source.source_id}.npz") as data:
        return {name: data[name] for name in ("state", "jaw_open", "speak_pcm", "listen_pcm")}


def accuracy(analysis: Analysis, partner: Analysis | None, conversation: Path, config: CurationConfig) -> float:
    expected = ground_truth_of(analysis, conversation)["state"]
    states = np.full(analysis.frames, DISCARD, np.uint8)
    for track, labels in zip(analysis.tracks, label_source(analysis, partner, config.states).labels, strict=True):
        states[track.start : track.stop] = labels.states
    return float((states[: len(expected)] == expected[: len(states)]).mean())


def test_label_source_accuracy_with_two_cameras(
    analyses: list[Analysis], conversation: Path, config: CurationConfig
) -> None:
    a, b = analyses
    assert accuracy(a, b, conversation, config) > 0.9
    assert accuracy(b, a, conversation, config) > 0.9


def test_label_source_accuracy_with_one_camera(
    analyses: list[Analysis], conversation: Path, config: CurationConfig
) -> None:
    for analysis in analyses:
        assert accuracy(analysis, None, conversation, config) > 0.88


def test_measured_mouth_gap_has_no_lag(analyses: list[Analysis], conversation: Path) -> None:
    for analysis in analyses:
        (track,) = analysis.tracks
        jaw = ground_truth_of(analysis, conversation)["jaw_open"][track.start : track.stop]
        gap = track.column("gap")
        by_lag = {lag: np.corrcoef(gap[12:-12], np.roll(jaw, lag)[12:-12])[0, 1] for lag in range(-3, 4)}
        assert by_lag[0] > 0.8
        assert max(by_lag, key=by_lag.__getitem__) in (-1, 0, 1)


def test_decoded_audio_starts_with_the_video(analyses: list[Analysis], conversation: Path) -> None:
    for analysis in analyses:
        own = ground_truth_of(analysis, conversation)["speak_pcm"].astype(float)
        size = min(len(own), len(analysis.track))
        both = np.fft.irfft(np.fft.rfft(analysis.track[:size].astype(float)) * np.conj(np.fft.rfft(own[:size])), size)
        assert int(both.argmax()) in (0, 1, size - 1)


def test_late_camera_is_aligned_and_labelled(
    analyses: list[Analysis], conversation: Path, config: CurationConfig
) -> None:
    a, b = analyses
    late = dataclasses.replace(
        b,
        frames=b.frames - 7,
        track=b.track[7000:],
        speech=b.speech[7:],
        loudness=b.loudness[7:],
        tracks=[dataclasses.replace(track, values=track.values[7:]) for track in b.tracks],
    )
    assert camera_offset(a.track, late.track, 2.0) == -7000
    assert label_source(a, late, config.states).offset_samples == -7000
    assert accuracy(a, late, conversation, config) > 0.9


def test_camera_offset_rejects_different_rooms(analyses: list[Analysis]) -> None:
    other = np.random.default_rng(1).normal(0, 2000, len(analyses[0].track)).astype(np.int16)
    assert camera_offset(analyses[0].track, other, 2.0) is None
    assert camera_offset(analyses[0].track, np.zeros_like(other), 2.0) is None


def test_find_cameras_rejects_copies_and_second_views(analyses: list[Analysis]) -> None:
    a, b = (Recording(track=one.track, gap=gap_on_timeline(one.tracks[0], one.frames)) for one in analyses)
    noise = np.random.default_rng(2).normal(0, 3000, len(b.track)).astype(np.int16)
    assert find_cameras([a, Recording(track=noise), b], 2.0) == [(0, 2)]
    assert find_cameras([a, Recording(track=b.track, gap=a.gap)], 2.0) == []
    jingle = np.where(np.arange(len(noise)) < len(noise) // 3, a.track, noise).astype(np.int16)
    assert find_cameras([a, Recording(track=jingle, gap=b.gap)], 2.0) == []


def test_sources_without_conversation_id_are_paired_within_a_folder(
    analyses: list[Analysis], config: CurationConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = []
    for name, analysis in (("x", analyses[0]), ("copy_of_x", analyses[0]), ("y", analyses[1])):
        source = dataclasses.replace(analysis.source, source_id=name, file=f"media/{name}.mp4")
        save_analysis(tmp_path / f"{name}.npz", dataclasses.replace(analysis, source=source))
        sources.append(source)
    files = {source.source_id: tmp_path / f"{source.source_id}.npz" for source in sources}
    found = find_partners(sources, {"copy_of_x"}, files, config.states)
    assert {name: partner.source_id for name, partner in found.items()} == {"x": "y", "y": "x"}
    named = [dataclasses.replace(sources[0], conversation_id="c", camera="a"), *sources[1:]]
    found = find_partners(named, set(), files, config.states)
    assert {partner.source_id for partner in found.values()} == {"copy_of_x", "y"}
    with caplog.at_level("INFO"):
        assert find_partners(sources, set(), files, StateConfig(match_cameras_max=1)) == {}
    assert "3 sources without a conversation_id are too many" in caplog.text


def test_unanswered_voice_is_offscreen_speech(analyses: list[Analysis], config: CurationConfig) -> None:
    own = analyses[0]
    labelled = label_source(own, None, config.states)
    states = np.full(len(labelled.labels[0].states), IDLE, np.uint8)
    states[100:120] = SPEAK
    labels = [dataclasses.replace(labelled.labels[0], states=states)]
    labelled = dataclasses.replace(labelled, labels=labels, offscreen=np.ones(own.frames, bool))
    offscreen = offscreen_speech(0, own, labelled, IntervalConfig(answer_s=1.0))
    start = own.tracks[0].start
    assert np.flatnonzero(~offscreen).tolist() == list(range(start + 76, start + 144))
    assert reject_reasons({"offscreen_voice_ratio": 0.8}, Thresholds.profile("sft")) == [
        "offscreen_voice_ratio_above_max"
    ]
    assert reject_reasons({"offscreen_voice_ratio": 1.0}, Thresholds.profile("tiny")) == []


def test_analysis_round_trip(analyses: list[Analysis], tmp_path: Path) -> None:
    save_analysis(tmp_path / "analysis.npz", analyses[0])
    back = load_analysis(tmp_path / "analysis.npz")
    assert back.source == analyses[0].source
    assert back.header == analyses[0].header
    assert back.shots == analyses[0].shots
    np.testing.assert_array_equal(back.tracks[0].values, analyses[0].tracks[0].values)
    np.testing.assert_array_equal(back.track, analyses[0].track)


def test_video_frames_yields_every_frame_once(sides: list[Path], config: CurationConfig) -> None:
    numbers = [number for number, _, _ in video_frames(sides[0], config.limits)]
    assert numbers == list(range(288))
    assert audio_track(sides[0], 288, config.limits).shape == (288_000,)


def test_find_copies_ignores_black_bars(
    analyses: list[Analysis], sides: list[Path], config: CurationConfig, tmp_path: Path
) -> None:
    images = np.stack([frame.rgb for _, frame, _ in video_frames(sides[0], config.limits)])
    framed = np.pad(images, ((0, 0), (0, 0), (20, 30), (0, 0)))
    write_mp4(tmp_path / "framed.mp4", framed, analyses[0].track, 24)
    found = analyse(tmp_path, dataclasses.replace(analyses[0].source, source_id="framed", file="framed.mp4"), config)
    fingerprints = []
    for number, one in enumerate([*analyses, found]):
        save_analysis(tmp_path / f"{number}.npz", one)
        fingerprints.append(load_fingerprint(tmp_path / f"{number}.npz"))
    copies = find_copies(fingerprints)
    assert list(copies) == ["framed"]
    assert frames_in(copies["framed"], found.frames).mean() > 0.95
