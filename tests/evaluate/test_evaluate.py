"""Probes on drawn people, and evaluations of models that are perfect, late, wrong or frozen."""

import dataclasses
import json
import re

import av
import numpy as np
import pytest

from components.evaluate import step
from components.evaluate.baseline import make_baseline, reconstruct
from components.evaluate.cases.build import load_bench, save_bench
from components.evaluate.cases.cases import SIGNALS
from components.evaluate.config import BenchConfig, EvaluateConfig
from components.evaluate.metrics.face import prepare, register
from components.evaluate.metrics.identity import fit_embedder, identity_scores
from components.evaluate.metrics.probe_set import check_probes, soften
from components.evaluate.model_outputs import generate_online, run_online
from components.evaluate.report.page import curve_svg
from components.evaluate.scores import score
from components.evaluate.timing import Stopwatch
from lpm_model.progress import NoProgress

CONFIG = EvaluateConfig(base_cases=0)


class PlaybackModel:
    """An Online LPM that plays back a given video for every case."""

    chunk_samples, lookahead_samples, size_px = 4000, 0, 64

    def __init__(self, cases, make_video):
        self.videos = {case.image.tobytes() + case.speak[:40_000].tobytes(): make_video(case) for case in cases}
        self.images = {case.image.tobytes(): case for case in cases}

    def character(self, image, references=()):
        case = self.images[image.tobytes()]
        return self.videos[image.tobytes() + case.speak[:40_000].tobytes()]

    def init_state(self, character, batch=1, seed=0):
        return character

    def step(self, state, speak, listen, text=None):
        assert speak.shape == listen.shape == (1, 4000)
        return state[None, :4], state[4:]


class LosslessAutoencoder:
    """An autoencoder whose reconstruction equals its input."""

    def encode(self, video):
        return video

    def decode(self, latents):
        return latents


@pytest.fixture(scope="module")
def baseline(drawn_bench):
    return make_baseline(LosslessAutoencoder(), drawn_bench, Stopwatch(), NoProgress())


@pytest.fixture(scope="module")
def run(drawn_bench, baseline):
    def scored(make_video):
        outputs = run_online(PlaybackModel(baseline.cases, make_video), baseline, 0, Stopwatch(), NoProgress())
        return score(baseline, outputs, drawn_bench, CONFIG, 4, None)

    return scored


def test_probes_generalise_to_unseen_people(drawn_bench, baseline):
    soft = [baseline.probes.measure(soften(c.frames)) for c in drawn_bench.cases]
    found = check_probes(drawn_bench.cases, baseline.ground_truth_measurements[:-1], soft)
    for name, least in {"jaw_open": 0.9, "pitch": 0.9, "smile": 0.75}.items():
        assert found[name]["correlation_on_ground_truth"] > least, (name, found[name])
        assert found[name]["correlation_through_autoencoder"] > least - 0.05, (name, found[name])


def test_registration_recovers_shift_and_roll(faces):
    import cv2

    face = faces.draw(7, 0.1)
    turned = []
    for shift, roll in [(0, 0), (3, 0), (-3, 0), (0, 0.1), (0, -0.1)]:
        warp = cv2.getRotationMatrix2D((31.5, 28.3), -np.degrees(roll), 1.0)
        warp[1, 2] += shift
        turned.append(cv2.warpAffine(face, warp, (64, 64), borderMode=cv2.BORDER_REPLICATE))
    poses = register(np.stack(turned))
    assert poses[1, 1] - poses[2, 1] == pytest.approx(6 / 64, abs=0.02)
    assert poses[3, 2] - poses[4, 2] == pytest.approx(0.2, abs=0.05)
    assert prepare(np.stack(turned)).colours.shape == (5, 64, 64, 2)


def test_ground_truth_scores_one_on_every_metric(run):
    report = run(lambda case: case.frames)
    for name in ("sync", "listening", "identity", "identity_similarity", "fidelity", "mouth_rest"):
        assert report.scores[name] == pytest.approx(1, abs=0.02), name
    assert report.scores["drift"] == pytest.approx(1, abs=0.02)
    assert report.quality["sharpness_ratio"] == pytest.approx(1)
    assert report.scores["psnr_db"] > 45
    assert report.bench["note"] == "rendered held-out people and sentences"


def test_grey_video_scores_zero_and_is_reported_as_frozen(run):
    report = run(lambda case: np.full_like(case.frames, 128))
    assert report.scores["sync"] == pytest.approx(0, abs=0.05)
    assert report.scores["mouth_rest"] == pytest.approx(0, abs=0.05)
    assert report.scores["identity"] < 0.4
    assert report.drift["generated"]["freeze_rate"] == 1
    assert any("is frozen" in note for note in report.notes)


def test_late_video_is_reported_with_its_lag(run):
    report = run(lambda case: np.concatenate([case.frames[:1].repeat(3, 0), case.frames[:-3]]))
    assert [c["sync_lag_frames"] for c in report.per_case] == [3] * 6
    assert report.scores["sync"] < 0.8
    assert report.scores["identity"] == pytest.approx(1, abs=0.02)


def test_wrong_person_with_right_mouth_keeps_sync_and_loses_identity(drawn_bench, run, faces):
    people = [c.person for c in drawn_bench.cases]
    following = dict(zip(people, people[2:] + people[:2], strict=True)) | {120: 100}
    report = run(lambda case: faces.video(following[case.person], case.ground_truth))
    assert report.scores["sync"] > 0.85
    assert report.scores["identity_share"] < 0.1


def test_rollout_morphing_into_another_person_lowers_the_drift_score(drawn_bench, run, faces):
    def morph(case):
        other = faces.video(case.person + 1, case.ground_truth)
        blend = np.linspace(0, 1, len(other))[:, None, None, None]
        return (case.frames * (1 - blend) + other * blend).astype(np.uint8)

    report = run(morph)
    assert report.scores["drift"] < 0.5
    assert report.drift["generated"]["identity"] > 3 * report.drift["ground_truth"]["identity"]


@pytest.fixture(scope="module")
def model_folders(tmp_path_factory):
    """Folders of an Online LPM and its Base LPM with random weights, as train and distill write them."""
    import torch

    from lpm_model.autoencoder.tiny import AutoencoderConfig, build_autoencoder
    from lpm_model.checkpoint import save_model
    from lpm_model.config import ModelConfig, OnlineConfig, to_mapping
    from lpm_model.online import OnlineModel

    torch.manual_seed(0)
    root, shape = tmp_path_factory.mktemp("models"), AutoencoderConfig()
    config, online = ModelConfig(width=48, heads=2, layers=2, ffn_width=64), OnlineConfig(window_latents=3)
    model = OnlineModel(config, online, build_autoencoder(shape), 64)
    described = {"model": to_mapping(config), "size_px": 64}
    for name, more in (("online", {"online": to_mapping(online)}), ("base", {})):
        save_model(root / name, {"model": model.backbone}, described | more, {})
        save_model(root / name / "autoencoder", {"model": model.autoencoder}, to_mapping(shape), {})
    return root / "online", root / "base"


def test_evaluate_writes_a_self_contained_report(drawn_bench, model_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(step, "build_bench", lambda out, config, progress: drawn_bench)
    folder = tmp_path / "report"
    config = dataclasses.replace(CONFIG, base_cases=1, base_seconds=1, base_steps=1)
    result = step.evaluate(*model_folders, folder, config, NoProgress())
    written = json.loads((folder / "report.json").read_text())
    assert written["scores"]["identity_share"] == pytest.approx(result.scores["identity_share"])
    assert {"sync", "listening", "identity", "psnr_db", "drift"} <= written["scores"].keys()
    assert {"bench", "probes", "reconstruct", "generate", "base", "score"} <= written["seconds"].keys()
    assert written["speed"]["base"]["seconds_per_video_second"] > 0
    assert any("The autoencoder degrades" in note for note in written["notes"])
    page = (folder / "report.html").read_text()
    links = re.findall(r'src="([^"#]+)[^"]*"', page)
    assert len(links) == 8
    assert all((folder / link).is_file() for link in links)
    assert "http" not in page
    with av.open(str(folder / "talk.mp4")) as container:
        assert container.streams.audio[0].rate == 24_000
        assert sum(1 for _ in container.decode(video=0)) == 192
    with av.open(str(folder / "videos" / "c0_a.mp4")) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (384, 128)


def test_generate_online_returns_all_frames_in_order(drawn_bench):
    case = drawn_bench.cases[0]
    generated = generate_online(PlaybackModel([case], lambda c: c.frames), case, 0)
    assert np.array_equal(generated.video, case.frames)
    assert len(generated.step_seconds) == len(case.frames) // 4 - 1


def test_long_videos_are_reconstructed_in_windows(drawn_bench):
    video = np.concatenate([drawn_bench.talk.image[None], drawn_bench.talk.frames])
    back = reconstruct(LosslessAutoencoder(), video)
    assert back.shape == drawn_bench.talk.frames.shape
    assert np.abs(back.astype(int) - drawn_bench.talk.frames).max() <= 1


def test_identity_separates_people(drawn_bench):
    embedder = fit_embedder([p.frames for p in drawn_bench.probes])
    points = [embedder.embed(c.frames) for c in drawn_bench.cases]
    groups = [c.group for c in drawn_bench.cases]
    right = identity_scores(points, points, points, groups)
    assert right.nearest.value == 1
    assert right.nearest.shuffled == 0
    assert right.similarity.value > right.similarity.shuffled + 0.5
    moved = points[2:] + points[:2]
    assert identity_scores(moved, points, points, groups).nearest.value == 0


def test_bench_round_trips_through_its_cache(drawn_bench, tmp_path):
    save_bench(drawn_bench, tmp_path)
    loaded = load_bench(tmp_path)
    assert [c.name for c in loaded.cases] == [c.name for c in drawn_bench.cases]
    assert loaded.digest == drawn_bench.digest
    for old, new in zip([*drawn_bench.cases, drawn_bench.talk], [*loaded.cases, loaded.talk], strict=True):
        assert np.array_equal(old.frames, new.frames)
        assert all(np.array_equal(getattr(old.ground_truth, n), getattr(new.ground_truth, n)) for n in SIGNALS)
    assert np.array_equal(loaded.probes[3].frames, drawn_bench.probes[3].frames)


def test_curve_svg_shows_both_signals_and_states():
    svg = curve_svg(np.zeros(48), np.ones(48), np.array([1] * 24 + [2] * 24))
    assert svg.count("<path") == 2
    assert svg.count('class="speak"') == svg.count('class="listen"') == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"conversations": 1}, "at least 2"),
        ({"seconds": 2}, "at least 4 s"),
        ({"talk_seconds": 5}, "no shorter"),
        ({"probe_people": 3}, "at least 8"),
        ({"probe_frames": 24}, "4k \\+ 1"),
    ],
)
def test_invalid_config_errors_name_the_remedy(values, message):
    with pytest.raises(ValueError, match=message):
        BenchConfig(**values)
    with pytest.raises(ValueError, match="base_seconds"):
        dataclasses.replace(CONFIG, base_cases=1, base_seconds=60)
