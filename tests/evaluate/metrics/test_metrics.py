"""Closed forms: ground truth scores 1, the shuffled condition 0, and delays are found."""

import dataclasses

import numpy as np
import pytest

from components.evaluate.cases.cases import LISTEN, SPEAK
from components.evaluate.metrics.anchored import (
    anchored,
    lagged_correlation,
    mean_score,
    normalise,
    pearson,
    smooth,
)
from components.evaluate.metrics.listening import (
    Reaction,
    after_pauses,
    listening_scores,
    nod_energy,
    nod_match,
    pause_lift,
    pauses,
    smile_match,
)
from components.evaluate.metrics.quality import frechet, psnr_db, ssim
from components.evaluate.metrics.speed import speed_report
from components.evaluate.metrics.stability import boundary_jump, edges, freeze_rate, sink_peak
from components.evaluate.metrics.sync import mouth_match, mouth_rest, sync_scores
from serving.drift import cosine_distance, frame_change, laplacian_energy

GROUPS = ["a", "a", "b", "b", "c", "c"]


def test_pearson_closed_forms():
    x = np.arange(20.0)
    assert pearson(x, 3 * x + 2) == pytest.approx(1)
    assert pearson(x, -x) == pytest.approx(-1)
    assert pearson(np.ones(20), x) == 0
    assert np.isnan(pearson(x[:5], x[:5]))


@pytest.mark.parametrize("delay", [-4, 0, 3, 6])
def test_lagged_correlation_finds_the_delay(delay):
    ground_truth = smooth(np.random.default_rng(0).normal(size=200), 1.5)
    late = np.roll(ground_truth, delay)
    value, lag = lagged_correlation(late, ground_truth, np.arange(200) > 20, 6)
    assert lag == delay
    assert value > 0.95


def test_lagged_correlation_stays_within_its_search_range():
    ground_truth = smooth(np.random.default_rng(0).normal(size=200), 1.5)
    value, lag = lagged_correlation(np.roll(ground_truth, 12), ground_truth, np.ones(200, bool), 6)
    assert abs(lag) <= 6
    assert value < 0.5


def test_normalise_places_values_between_anchors():
    assert normalise(0.9, 0.9, 0.1) == pytest.approx(1)
    assert normalise(0.1, 0.9, 0.1) == pytest.approx(0)
    assert normalise(0.5, 0.9, 0.1) == pytest.approx(0.5)
    assert normalise(0.5, 0.12, 0.1) is None
    assert normalise(float("nan"), 1, 0) is None


def test_anchored_uses_only_other_conversations_as_shuffled_condition():
    same = np.array([[GROUPS[i] == GROUPS[j] for j in range(6)] for i in range(6)])
    matrix = np.where(same, 7.0, 0.2)
    np.fill_diagonal(matrix, 0.6)
    found = anchored(matrix, np.full(6, 1.0), GROUPS)
    assert (found.value, found.ground_truth, found.shuffled) == pytest.approx((0.6, 1.0, 0.2))
    assert found.score == pytest.approx(0.5)
    assert found.low == pytest.approx(0.5)


def test_anchored_ignores_undefined_cases_and_bootstraps_an_interval():
    matrix = np.zeros((6, 6))
    np.fill_diagonal(matrix, [0.2, 0.9, np.nan, 0.4, 0.7, 0.5])
    found = anchored(matrix, np.ones(6), GROUPS)
    assert found.value == pytest.approx(np.mean([0.2, 0.9, 0.4, 0.7, 0.5]))
    assert found.per_case[2] is None
    assert found.low < found.score < found.high
    nothing = anchored(np.full((6, 6), np.nan), np.ones(6), GROUPS)
    assert nothing.score is None


def test_mean_score_ignores_metrics_without_a_score():
    good = anchored(np.eye(6), np.ones(6), GROUPS)
    bad = anchored(np.full((6, 6), np.nan), np.ones(6), GROUPS)
    assert mean_score([good, bad]) == pytest.approx(1)
    assert mean_score([bad]) is None


@pytest.fixture(scope="module")
def ground_truths(faces):
    return [faces.ground_truth(seed, 240) for seed in range(6)]


def test_sync_is_one_for_ground_truth_and_zero_for_shuffled_and_constant(ground_truths):
    perfect = [t.jaw_open for t in ground_truths]
    score = sync_scores(perfect, perfect, ground_truths, GROUPS)
    assert score.mouth.score == pytest.approx(1)
    assert abs(score.mouth.shuffled) < 0.3
    assert score.lags == (0,) * 6
    assert score.rest.score == pytest.approx(1)
    swapped = sync_scores(perfect[2:] + perfect[:2], perfect, ground_truths, GROUPS)
    assert abs(swapped.mouth.value) < 0.3
    grey = sync_scores([np.zeros(240)] * 6, perfect, ground_truths, GROUPS)
    assert grey.mouth.score == pytest.approx(0)
    assert grey.rest.score == pytest.approx(0)


def test_late_mouth_lowers_sync_and_its_lag_is_reported(ground_truths):
    late = [np.roll(t.jaw_open, 3) for t in ground_truths]
    score = sync_scores(late, [t.jaw_open for t in ground_truths], ground_truths, GROUPS)
    assert score.lags == (3,) * 6
    assert score.mouth.score < 0.8
    assert min(score.best) > 0.9


def test_mouth_moving_while_listening_has_no_rest(ground_truths):
    ground_truth = ground_truths[0]
    chatter = np.random.default_rng(0).normal(size=240)
    assert mouth_rest(ground_truth.jaw_open, ground_truth) > 0.9
    assert mouth_rest(chatter, ground_truth) < 0.2
    assert mouth_match(ground_truth.jaw_open, ground_truth) == pytest.approx(1)


def test_pauses_start_where_the_partner_falls_silent():
    loud = np.zeros(100)
    loud[10:30] = loud[32:50] = loud[70:90] = 1
    listen = (np.repeat(loud, 1000) * 8000 * np.sin(np.arange(100_000) / 5)).astype(np.int16)
    assert pauses(listen).tolist() == [50, 90]


def test_listening_is_one_for_ground_truth_and_zero_for_a_still_head(ground_truths):
    perfect = [Reaction(pitch=t.pitch, smile=t.warmth) for t in ground_truths]
    score = listening_scores(perfect, perfect, ground_truths, GROUPS)
    assert score.nod.score == pytest.approx(1)
    assert score.smile.score == pytest.approx(1)
    assert score.lift.score == pytest.approx(1)
    assert score.score == pytest.approx(1)
    still = [Reaction(pitch=np.zeros(240), smile=np.zeros(240))] * 6
    assert abs(listening_scores(still, perfect, ground_truths, GROUPS).nod.score) < 0.05
    assert abs(listening_scores(still, perfect, ground_truths, GROUPS).smile.score) < 0.05


def test_nods_are_compared_on_quiet_frames_and_ignore_slow_posture(ground_truths):
    ground_truth = ground_truths[1]
    speaking = ground_truth.state == SPEAK
    wild = np.where(speaking, 0.02 * np.random.default_rng(0).normal(size=240), ground_truth.pitch)
    assert nod_match(Reaction(pitch=wild, smile=ground_truth.warmth), ground_truth) > 0.7
    posture = np.sin(np.arange(240) / 60)
    assert nod_energy(posture).max() < 0.05 * nod_energy(ground_truth.pitch * 5).max()
    assert smile_match(Reaction(pitch=ground_truth.pitch, smile=ground_truth.warmth), ground_truth) == pytest.approx(1)


def test_pause_lift_measures_movement_after_pauses(ground_truths):
    ground_truth = ground_truths[2]
    after = after_pauses(ground_truth)
    rng = np.random.default_rng(1)
    answers = np.cumsum(rng.normal(size=240) * np.where(after, 1, 0.1))
    ignores = np.cumsum(rng.normal(size=240) * np.where(after, 0.1, 1))
    assert pause_lift(Reaction(pitch=answers, smile=answers), ground_truth) > 1
    assert pause_lift(Reaction(pitch=ignores, smile=ignores), ground_truth) < -1


def test_ground_truth_of_unequal_lengths_is_rejected(ground_truths):
    t = ground_truths[0]
    with pytest.raises(ValueError, match="239 frames"):
        dataclasses.replace(t, jaw_open=t.jaw_open[1:])
    with pytest.raises(ValueError, match="1000 per frame"):
        dataclasses.replace(t, listen=t.listen[1:])
    assert (t.state == LISTEN).any()


def test_image_quality_closed_forms():
    rng = np.random.default_rng(0)
    video = rng.integers(0, 200, (3, 32, 32, 3)).astype(np.uint8)
    assert psnr_db(video + 10, video) == pytest.approx(20 * np.log10(25.5))
    assert psnr_db(video, video) == pytest.approx(100)
    assert ssim(video, video) == pytest.approx(1)
    assert ssim(video, rng.integers(0, 200, video.shape).astype(np.uint8)) < 0.2
    assert laplacian_energy(np.full((2, 16, 16, 3), 128, np.uint8)).tolist() == [0, 0]


def test_frechet_distance_of_gaussians():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(4000, 3))
    assert frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet(a, a + [2, 0, 0]) == pytest.approx(4, rel=1e-6)
    assert frechet(a, 3 * a) == pytest.approx(4 * np.trace(np.cov(a.T)) + 4 * (a.mean(0) ** 2).sum(), rel=1e-6)


def test_freeze_rate_counts_frozen_windows():
    frozen = np.full((96, 16, 16, 3), 90, np.uint8)
    moving = np.random.default_rng(0).integers(0, 255, (96, 16, 16, 3)).astype(np.uint8)
    assert freeze_rate(frame_change(frozen)) == 1
    assert freeze_rate(frame_change(moving)) == 0
    half = np.concatenate([moving, frozen])
    assert 0.3 < freeze_rate(frame_change(half)) < 0.7


def test_boundary_jump_detects_seams_at_chunk_length():
    change = np.ones(95)
    assert boundary_jump(change, 4) == pytest.approx(1)
    change[3::4] = 3
    assert boundary_jump(change, 4) == pytest.approx(3)
    assert boundary_jump(np.zeros(95), 4) == 1


def test_sink_peak_detects_recurring_return_to_the_start():
    time = np.arange(480)
    assert sink_peak(np.where(time % 72 < 36, 1.0, 0.2)) > 0.6
    assert sink_peak(np.random.default_rng(0).normal(size=480)) < 0.3
    assert sink_peak(np.ones(480)) == 0


def test_edges_and_cosine_distance():
    first, last = edges(np.arange(100.0))
    assert (len(first), len(last), last[-1]) == (15, 15, 99)
    assert cosine_distance(np.array([[1.0, 0]]), np.array([[0, 1.0]])) == pytest.approx(1)
    assert cosine_distance(np.array([[1.0, 0]]), np.array([[2.0, 0]])) == pytest.approx(0)


def test_speed_report_counts_compute_per_video_second():
    report = speed_report([0.1] * 10, 4)
    assert report.seconds_per_video_second == pytest.approx(0.6)
    assert report.chunk_p50_ms == pytest.approx(100)
    with pytest.raises(ValueError, match="at least one chunk"):
        speed_report([], 4)
