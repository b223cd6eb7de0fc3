"""Heavy tests, which `make test-fast` skips and `make test` runs."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

HEAVY = (
    "tests/curate/clips/test_references.py",
    "tests/curate/erase/test_erase.py",
    "tests/curate/labels/test_rendered.py",
    "tests/curate/report",
    "tests/curate/run",
    "tests/curate/scorers/test_planted.py",
    "tests/curate/test_curate.py",
    "tests/curate/test_real_clips.py",
    "tests/curate/test_validate.py",
    "tests/curate/video/test_face_mesh.py",
    "tests/deploy/test_deploy.py",
    "tests/evaluate/cases",
    "tests/evaluate/test_evaluate.py",
    "tests/helm/test_chart.py",
    "tests/helm/test_smoke.py",
    "tests/infra/test_s3.py",
    "tests/ingest/test_ingest.py",
    "tests/lpm_model/test_compiled.py",
    "tests/lpm_model/training/base",
    "tests/lpm_model/training/distill/test_distillation.py",
    "tests/lpm_model/training/engine/test_resume.py",
    "tests/lpm_model/training/engine/test_scale.py",
    "tests/lpm_model/training/test_autoencoder_training.py",
    "tests/performer/test_compose.py",
    "tests/performer/test_real_clips.py",
    "tests/performer/test_renderer.py",
    "tests/performer/test_voices.py",
    "tests/pipelines/test_compile.py",
    "tests/pipelines/test_dvc.py",
    "tests/pipelines/test_local_run.py",
    "tests/serving/test_live.py",
    "tests/serving/test_live_benchmark.py",
    "tests/serving/test_lpm_engine.py",
    "tests/serving/test_runtime.py",
    "tests/serving/test_web_build.py",
)
"""Files and folders whose tests train, compile, render, or start processes, servers and pipelines."""
HEAVY_TESTS = (
    "tests/curate/scorers/test_scorers.py::test_speech_quality_drops_with_noise",
    "tests/curate/video/test_identity.py::test_curate_checks_identity_before_decoding",
    "tests/curate/video/test_roi_cache.py::test_dataset_is_equal_with_and_without_roi_cache",
    "tests/lpm_model/test_online.py::test_batched_row_equals_single_row",
    "tests/lpm_model/test_online.py::test_streaming_equals_recurrence_for_any_config",
    "tests/pipelines/test_cli.py::test_compile_writes_the_pipeline",
)
"""Single heavy tests in other files; the marker `@pytest.mark.heavy` on a test has the same effect."""
HEAVY_FIXTURES = frozenset({"empty_database"})
"""Fixtures that take seconds: a test that requests one is heavy."""


def is_heavy(path: Path) -> bool:
    """Whether all tests of a file, or of a folder, are heavy."""
    return any(path == ROOT / name or ROOT / name in path.parents for name in HEAVY)


def is_heavy_test(node_id: str, fixtures: frozenset[str]) -> bool:
    """Whether a single test is heavy.

    Args:
        node_id: pytest's name of the test, from the root of the repository, with or without parameters.
        fixtures: names of the fixtures it requests.
    """
    return node_id.partition("[")[0] in HEAVY_TESTS or bool(fixtures & HEAVY_FIXTURES)
