"""The fit of the lip-sync map: ridge regression in closed form, and the command."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from components.curate.scorers import fit_lips
from components.curate.scorers.lips import WEIGHTS
from components.runtime.code_closure import code_closure


def test_ridge_regression_of_one_feature() -> None:
    """Of one centred feature x, the factor is x.y / (x.x + 30)."""
    x, y = np.array([-3.0, 0.0, 3.0], np.float32), np.array([-1.0, 0.0, 1.0])
    found = fit_lips.ridge_regression(5 + x[:, None], y)
    np.testing.assert_allclose(found["map"], [6 / (18 + 30)])
    np.testing.assert_allclose(found["mean"], [5.0])


def test_command_writes_weights_of_the_shipped_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spectra = np.random.default_rng(0).normal(size=(500, 216)).astype(np.float32)
    weights = fit_lips.ridge_regression(spectra, spectra[:, 0].astype(np.float64))
    monkeypatch.setattr(fit_lips, "fit", lambda *_: weights)
    fit_lips.main(["--out", str(tmp_path / "lips.safetensors")])
    written, shipped = load_file(tmp_path / "lips.safetensors"), load_file(WEIGHTS)
    assert {name: array.shape for name, array in written.items()} == {n: a.shape for n, a in shipped.items()}


def test_curation_does_not_import_the_renderer() -> None:
    files = code_closure("components.curate.step").files
    assert [name for name in files if "performer" in name] == []
