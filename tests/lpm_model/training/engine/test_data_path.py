"""Clips from shards: bounded memory, buckets, ranks, workers, held-out people."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from components.dataset.shards import write_shards
from lpm_model.autoencoder.load import load_autoencoder
from lpm_model.sampler import BaseModel
from lpm_model.training.base.config import BaseTraining
from lpm_model.training.engine.data import Batch, ClipBatches, RandomCrops, WindowSampling, prefetched
from lpm_model.training.engine.shard_reader import LruCache, read_clips
from tests.lpm_model import tiny

SHAPES = {"wide": (9, 4, 6), "square": (9, 4, 4), "short": (5, 4, 4), "shortest": (3, 4, 4)}
"""Latent frames, rows and columns of each clip of a mixed dataset."""


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def model(encoder: Path) -> BaseModel:
    torch.manual_seed(0)
    return BaseModel(tiny.MODEL, load_autoencoder(encoder), tiny.SIZE_PX)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "dataset", encoder, clips=12)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of several lengths and grids."""
    folder = tmp_path_factory.mktemp("mixed")

    def members(frames: int, rows: int, columns: int) -> dict[str, object]:
        facts = {name.removesuffix(".npy"): value for name, value in tiny.clip_members(0, frames).items()}
        return facts | {
            "latents": np.zeros((16, frames, rows, columns), np.float16),
            "references": np.zeros((3, 16, rows, columns), np.float16),
        }

    write_shards(folder / "shards", ((name, members(*shape)) for name, shape in SHAPES.items()), 2)
    (folder / "dataset.json").write_text("{}")
    return folder


def equal(one: Batch, other: Batch) -> bool:
    pairs = [(one.latents, other.latents), *((getattr(b.conditions, n) for b in (one, other)) for n in
             ("text", "speak", "listen", "references", "reference_positions"))]  # fmt: skip
    return one.windows == other.windows and all(torch.equal(a, b) for a, b in pairs)


def test_batches_without_cache_equal_batches_from_memory(dataset: Path, model: BaseModel) -> None:
    def batches(cache_bytes: int, *, at_hand: bool) -> list[Batch]:
        clips = read_clips(dataset, cache_bytes)
        return list(
            ClipBatches(list(clips) if at_hand else clips, model, latents=4, batch=3, steps=range(6), seed=0,
                        sampling=WindowSampling(noise_aug_prob=0.5, references=3, reference_prob=0.5, expressive=1.0),
                        cache_bytes=cache_bytes)
        )  # fmt: skip

    pairs = zip(batches(10**9, at_hand=True), batches(0, at_hand=False), strict=True)
    assert all(equal(one, other) for one, other in pairs)


def test_caches_stay_below_their_limit(dataset: Path, model: BaseModel) -> None:
    clip = read_clips(dataset)[0].nbytes
    clips = read_clips(dataset, 3 * clip)
    batches = ClipBatches(clips, model, latents=4, batch=4, steps=range(20), seed=0, cache_bytes=10**6)
    for _ in batches:
        assert 0 < clips.cache.held_bytes <= 3 * clip
        assert 0 < batches.features.held_bytes <= 10**6


def test_lru_cache_evicts_least_recently_used() -> None:
    made: list[str] = []

    def make(name: str) -> str:
        made.append(name)
        return name

    cache: LruCache[str, str] = LruCache(3, len)
    for name in ("a", "b", "c", "a", "d", "a", "b"):
        assert cache.get(name, lambda name=name: make(name)) == name  # type: ignore[misc]
    assert made == ["a", "b", "c", "d", "b"], "b was the one used longest ago when d came"
    cache.get("larger", lambda: make("larger"))
    assert cache.held_bytes == 6
    cache.get("e", lambda: make("e"))
    assert cache.held_bytes == 1


READ_ALL = """
import resource, sys
from pathlib import Path
from lpm_model.training.engine.shard_reader import read_clips
clips = read_clips(Path(sys.argv[1]), 4_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for _ in range(2):
    assert sum(int(clip.speak[0]) for clip in clips) == len(clips)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def test_reading_a_large_dataset_stays_within_cache_limit(tmp_path: Path) -> None:
    """Reading 80 MB of 1 MB clips twice needs no more than the 4 MB cache and the buffers of one read."""
    ones = {"latents": np.ones((16, 20, 32, 32), np.float16), "references": np.ones((1, 16, 32, 32), np.float16),
            "speak": np.ones(76000, np.int16), "listen": np.ones(76000, np.int16),
            "json": {"caption": "", "reference_kinds": ["global"]}}  # fmt: skip
    write_shards(tmp_path / "shards", ((f"c{i:03d}", ones) for i in range(80)), 20)
    (tmp_path / "dataset.json").write_text("{}")
    assert sum(shard.stat().st_size for shard in (tmp_path / "shards").iterdir()) > 79e6
    run = subprocess.run([sys.executable, "-c", READ_ALL, tmp_path], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 4e6 + 8e6


def test_batches_have_one_window_length_and_grid(mixed: Path, model: BaseModel) -> None:
    batches = ClipBatches(read_clips(mixed), model, latents=8, shorter=(5, 3), batch=4, steps=range(60), seed=0)
    found = {}
    for batch in batches:
        for window in batch.windows:
            found.setdefault(window.key, set()).add(tuple(batch.latents.shape[2:]))
        assert batch.conditions.references is not None
        assert batch.conditions.references.shape[-2:] == batch.latents.shape[-2:]
    assert found == {"wide": {(8, 4, 6)}, "square": {(8, 4, 4)}, "short": {(5, 4, 4)}, "shortest": {(3, 4, 4)}}
    one = ClipBatches(read_clips(mixed), model, latents=8, batch=4, steps=range(1), seed=0)
    assert [(bucket.latents, bucket.grid) for bucket in one.buckets] == [(8, (4, 6)), (8, (4, 4))]


def test_batch_tokens_limit_batches_without_changing_window_probability(mixed: Path, model: BaseModel) -> None:
    crops = RandomCrops(steps=30, full_frame_every=2, batch=9, size=2)
    steps = range(1200)
    batches = ClipBatches(read_clips(mixed), model, latents=8, shorter=(5, 3), batch=9, steps=steps, seed=0, tokens=64)
    sizes = {(bucket.latents, bucket.grid): bucket.batch for bucket in batches.buckets}
    assert sizes == {(8, (4, 6)): 1, (8, (4, 4)): 2, (5, (4, 4)): 3, (3, (4, 4)): 5}
    drawn = Counter[str]()
    for step in steps:
        bucket = batches.bucket(step)
        drawn.update({read: bucket.batch for read in (batches.facts[place].key for place in bucket.clip_indices)})
    weights = {batches.facts[b.clip_indices[0]].key: float(b.weights.sum()) for b in batches.buckets}
    for key, weight in weights.items():
        assert drawn[key] / drawn.total() == pytest.approx(weight / sum(weights.values()), abs=0.06)
    cut = ClipBatches(
        read_clips(mixed), model, latents=8, shorter=(5, 3), batch=9, steps=steps, seed=0, tokens=64, crops=crops
    )
    assert {bucket.latents: bucket.crop_batch for bucket in cut.buckets} == {8: 8, 5: 9, 3: 9}
    with pytest.raises(ValueError, match="one window has 48 tokens, batch_tokens is 40"):
        ClipBatches(read_clips(mixed), model, latents=8, batch=9, steps=steps, seed=0, tokens=40)


def test_batches_of_one_optimizer_step_have_one_shape(mixed: Path, model: BaseModel) -> None:
    batches = ClipBatches(
        read_clips(mixed), model, latents=8, shorter=(5, 3), batch=3, steps=range(24), seed=0, batches_per_step=3,
        crops=RandomCrops(steps=8, full_frame_every=2, batch=4, size=2),
    )  # fmt: skip
    shapes = [batch.latents.shape for batch in batches]
    assert all(len(set(shapes[step : step + 3])) == 1 for step in range(0, 24, 3))
    assert len(set(shapes)) > 2
    drawn = {float(torch.rand((), generator=batches.make(step).generator)) for step in range(3)}
    assert len(drawn) == 3, "the batches of a step are different ones"


def test_loader_workers_preserve_batches_and_order(dataset: Path, model: BaseModel) -> None:
    batches = ClipBatches(read_clips(dataset), model, latents=4, batch=2, steps=range(3, 10), seed=0)
    together = list(prefetched(batches, 2))
    assert len(together) == 7
    for alone, made in zip(batches, together, strict=True):
        assert equal(alone, made)
        assert torch.equal(torch.rand(4, generator=alone.generator), torch.rand(4, generator=made.generator))


def test_damaged_clip_error_names_clip(dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "dataset.json").write_text(json.dumps({}))
    shard = tmp_path / "shards" / "train-000000.tar"
    with webdataset.TarWriter(str(shard)) as tar:
        tar.write({"__key__": "folder/first", **tiny.clip_members(0)})
        tar.write({"__key__": "second", **tiny.clip_members(1) | {"latents.npy": b"no array"}})
    with pytest.raises(ValueError, match=r"train-000000\.tar: clip second cannot be read"):
        read_clips(tmp_path)


def test_split_holds_out_whole_people_deterministically(tmp_path: Path) -> None:
    def clips(order: list[int]) -> Path:
        folder = tmp_path / "-".join(map(str, order[:2]))
        members = {i: {n.removesuffix(".npy"): v for n, v in tiny.clip_members(i).items()} for i in order}
        for i in order:
            members[i]["json"] = {**members[i]["json"], "person_id": f"person{i % 10}", "source_id": f"source{i}"}
        write_shards(folder / "shards", ((f"clip{i}", members[i]) for i in order), 7)
        (folder / "dataset.json").write_text("{}")
        return folder

    numbers = list(range(30))
    kept, held = read_clips(clips(numbers)).split(0.2)
    people = [{facts.group for facts in part.facts} for part in (kept, held)]
    assert len(people[1]) == 2
    assert not people[0] & people[1]
    assert len(kept) + len(held) == 30
    again = read_clips(clips(numbers[::-1])).split(0.2)[1]
    assert [facts.key for facts in again.facts] == [facts.key for facts in held.facts]
    everything, nobody = read_clips(clips(numbers)).split(0.0)
    assert (len(everything), len(nobody)) == (30, 0)
    with pytest.raises(ValueError, match=r"held_out_fraction 0\.95 of 10 people leaves nobody to train on"):
        everything.split(0.95)


def test_shorter_latents_must_be_at_least_two() -> None:
    with pytest.raises(ValueError, match="shorter_latents"):
        BaseTraining(shorter_latents=(1,))
