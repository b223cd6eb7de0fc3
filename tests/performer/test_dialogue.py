"""Dialogue scripts: varied, deterministic, with disjoint sentence banks."""

import numpy as np
import pytest

from components.performer.behaviour import EMOTIONS
from components.performer.dialogue import backchannels, sentences, write_script


def texts(bank: str) -> list[str]:
    return [text for group in sentences(bank).values() for text in group]  # type: ignore[arg-type]


def test_banks_are_large_and_disjoint() -> None:
    train, heldout = texts("train"), texts("heldout")
    assert len(set(train)) == len(train) >= 300
    assert len(set(heldout)) == len(heldout) >= 60
    plain = [{"".join(filter(str.isalnum, text.lower())) for text in bank} for bank in (train, heldout)]
    assert not plain[0] & plain[1]
    assert sentences("train").keys() == sentences("heldout").keys()
    with pytest.raises(ValueError, match="train or heldout"):
        sentences("test")  # type: ignore[arg-type]


def test_script_is_deterministic_in_its_seed() -> None:
    assert write_script(4, 60) == write_script(4, 60)
    assert write_script(4, 60) != write_script(5, 60)


def test_lines_fit_and_lines_of_one_side_do_not_overlap() -> None:
    for seed in range(30):
        lines = write_script(seed, 25)
        assert {line.side for line in lines} == {"a", "b"}
        assert max(line.end_sample for line in lines) <= (25 - 0.3) * 24_000
        assert [line.start_sample for line in lines] == sorted(line.start_sample for line in lines)
        for side in "ab":
            own = [line for line in lines if line.side == side]
            assert all(a.end_sample <= b.start_sample for a, b in zip(own, own[1:], strict=False))
        assert all(line.emotion in EMOTIONS and line.length_samples > 0 for line in lines)


def test_scripts_contain_pauses_overlaps_interruptions_and_backchannels() -> None:
    gaps, kinds, cut = [], [], 0
    for seed in range(40):
        lines = write_script(seed, 40)
        kinds += [line.kind for line in lines]
        spoken = [line for line in lines if line.kind == "sentence"]
        gaps += [
            (b.start_sample - a.end_sample) / 24_000
            for a, b in zip(spoken, spoken[1:], strict=False)
            if a.side != b.side
        ]
        full = {
            line.text: line.length_samples
            for line in write_script(seed, 40, length=lambda side, text: 10**4 * len(text))
        }
        assert full
        cut += sum(line.length_samples < int(24_000 * (0.35 + 0.062 * len(line.text))) for line in lines)
    assert 0.03 < np.mean(np.asarray(gaps) < 0) < 0.4
    assert np.mean(np.asarray(gaps) > 1.1) > 0.03
    assert 0.05 < kinds.count("backchannel") / len(kinds) < 0.35
    assert cut > 5


def test_heldout_scripts_use_only_the_heldout_bank() -> None:
    allowed = set(texts("heldout")) | set(backchannels())
    assert {line.text for seed in range(10) for line in write_script(seed, 30, "heldout")} <= allowed
