"""Distillation of Base LPM into Online LPM in five stages (paper section 4.2; LongLive, arXiv 2509.22622).

`_run_stages` lists them in order.
"""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lpm_model.autoencoder.load import copy_autoencoder, load_autoencoder
from lpm_model.character import config_part, read_base_config
from lpm_model.checkpoint import load_weights, read_weights, save_model
from lpm_model.config import ModelConfig, to_mapping
from lpm_model.digests import model_digest
from lpm_model.encoders.load import copy_encoders, find_encoders
from lpm_model.lora import difference_lora
from lpm_model.online import OnlineModel
from lpm_model.progress import Progress
from lpm_model.training.distill.collapse_monitor import HeldOutRollout
from lpm_model.training.distill.config import Distillation
from lpm_model.training.distill.long_rollout import StreamingSampler
from lpm_model.training.distill.roles import ModelRoles
from lpm_model.training.distill.rollout_samplers import OffPolicySampler, OnPolicySampler
from lpm_model.training.distill.stage_runner import DMD_STAGES, StageRunner
from lpm_model.training.distill.trajectories import TrajectoryShards, shards_key
from lpm_model.training.engine.data import ClipBatches, read_dataset
from lpm_model.training.engine.launch import Mesh, join_processes
from lpm_model.training.engine.shard_reader import Clips, ShardClips, read_clips

log = logging.getLogger(__name__)
VALIDATION_SEED_OFFSET = 9
"""Offset of the seed for the clips of the collapse monitor."""


def distill_online(
    base: Path,
    dataset: Path,
    folder: Path,
    settings: Distillation,
    progress: Progress | None = None,
    *,
    logger: Any = False,
    trajectories: Path | None = None,
) -> dict[str, float]:
    """Distil a Base LPM folder into an Online LPM folder; a killed run resumes from its last checkpoint.

    Args:
        base: the teacher's folder.
        dataset: folder that curate wrote; its clips start and condition the rollouts.
        folder: output; trajectories and checkpoints inside it are deleted at the end.
        settings: settings of all stages.
        progress: shows the steps.
        logger: Lightning logger(s).
        trajectories: folder for the teacher's trajectories, which other distillations can reuse.

    Returns:
        Metrics of each stage: its last loss, its best step, and the validation distance of that step.

    Raises:
        ValueError: the folders do not match.
    """
    with join_processes(settings.scale) as mesh:
        if not mesh.is_main:
            progress, logger = None, False
        return _distill(base, dataset, folder, settings, progress, logger, mesh, trajectories)


def _run_stages(runner: StageRunner) -> dict[str, float]:
    """Run the five stages in order, each on the weights retained by the previous one, and return their metrics."""
    settings, roles, length, metrics = runner.settings, runner.roles, runner.settings.clip_latents, dict[str, float]()
    if not any(getattr(settings, key).steps for key in ("ode", *DMD_STAGES)):
        log.warning("all stages have 0 steps: Online LPM gets the weights of its Base, which is not causal")
    if settings.ode.steps or settings.off_policy.steps:
        runner.sample_trajectories()
    if settings.ode.steps:  # 1: regression to the endpoints of the teacher's trajectories
        metrics |= runner.ode_regression()
    if settings.off_policy.steps:  # 2: distribution matching on the teacher's clips
        metrics |= runner.match_distribution("off_policy", OffPolicySampler(roles, settings), runner.trajectory_batches)
    if settings.on_policy.steps:  # 3: distribution matching on the student's own rollouts
        clips = runner.clip_batches(settings.on_policy.rollout_latents or length, seed_offset=2)
        metrics |= runner.match_distribution("on_policy", OnPolicySampler(roles, settings, "student"), clips)
    if roles.online.refiner is not None:
        roles.initialize("refiner", "student")
        if not settings.refiner.steps:
            log.warning("refiner.steps is 0: the refiner is a copy of the backbone and was not trained to refine")
    if settings.refiner.steps:  # 4: distribution matching of the refiner on the student's rollouts
        clips = runner.clip_batches(settings.refiner.rollout_latents or length, seed_offset=3)
        metrics |= runner.match_distribution("refiner", OnPolicySampler(roles, settings, "refiner"), clips)
    if settings.long.steps:  # 5: distribution matching on rollouts that continue from step to step
        sampler, clips = StreamingSampler(roles, settings), runner.clip_batches(length, seed_offset=4)
        # Checkpoints are saved at the start of a rollout, so that no rollout has to be saved.
        rollouts = max(1, settings.checkpoint_steps // sampler.steps_per_rollout)
        metrics |= runner.match_distribution("long", sampler, clips, sampler.steps_per_rollout * rollouts)
    return metrics


def _distill(
    base: Path, dataset: Path, folder: Path, settings: Distillation, progress: Progress | None, logger: Any, mesh: Mesh,
    trajectories: Path | None,
) -> dict[str, float]:  # fmt: skip
    torch.manual_seed(settings.seed)
    config, autoencoder = read_base_config(base), load_autoencoder(base / "autoencoder")
    about = read_dataset(dataset, autoencoder.digest)
    shape = config_part(ModelConfig, config, "model", base)
    online = OnlineModel(shape, settings.online, autoencoder, config["size_px"], find_encoders(base))
    load_weights(online.backbone, read_weights(base / "model.safetensors"), base / "model.safetensors")
    for part in (*online.networks.values(), online.autoencoder):
        assert isinstance(part, nn.Module)
        part.to(mesh.device)  # the encoders stay on the device that makes batches
    clips, held_out = _split(read_clips(dataset), settings)
    roles = ModelRoles(online, settings.lora)
    parent = model_digest(base)
    stored = trajectories / shards_key(settings, parent, about["digest"]) if trajectories else folder / "trajectories"
    runner = StageRunner(
        roles, clips, _validation(held_out, roles, settings), folder, settings, mesh, progress, logger,
        TrajectoryShards(stored, settings),
    )  # fmt: skip
    metrics = _run_stages(runner) | {"trajectories": float(settings.trajectories)}
    if not mesh.is_main:
        return metrics
    about_model = {"model": to_mapping(online.config), "online": to_mapping(settings.online), "size_px": online.size_px}
    origin = {"dataset_digest": about["digest"], "parent": parent, "settings": to_mapping(settings)}
    weights = {"model": roles.state_dict("student")}
    if online.refiner is not None:
        weights["refiner"] = roles.state_dict("refiner")
        if settings.lora.rank:
            about_model["refiner_lora"] = to_mapping(difference_lora(settings.lora))
    save_model(folder, weights, about_model, {**origin, "metrics": metrics})
    copy_autoencoder(base / "autoencoder", folder)
    copy_encoders(find_encoders(base), folder)
    for temporary in (*folder.glob("checkpoint-*"), folder / "trajectories"):
        shutil.rmtree(temporary, ignore_errors=True)
    return metrics


def _split(clips: ShardClips, settings: Distillation) -> tuple[Clips, Clips]:
    """Return training clips and held-out clips; both are all clips if nobody can be held out."""
    fraction, length = settings.collapse_monitor.held_out_fraction, settings.clip_latents
    if not settings.collapse_monitor.every_steps or not fraction:
        return clips, clips
    if len({facts.group for facts in clips.facts}) < 2:
        log.warning("the dataset shows only one person: the collapse monitor validates on training clips")
        return clips, clips
    training, held_out = clips.split(fraction)
    if not any(facts.latents >= length for facts in held_out.facts):
        log.warning("no held-out clip has %d latent frames: the collapse monitor validates on training clips", length)
        return clips, clips
    return training, held_out


def _validation(clips: Clips, roles: ModelRoles, settings: Distillation) -> HeldOutRollout | None:
    """Return the validation of the collapse monitor; None without a monitor."""
    if not settings.collapse_monitor.every_steps:
        return None
    source = ClipBatches(
        clips, roles.online, latents=settings.clip_latents, batch=settings.collapse_monitor.clips, steps=range(1),
        seed=settings.seed + VALIDATION_SEED_OFFSET,
    )  # fmt: skip
    return HeldOutRollout(roles, source.make(0).to(roles.device))
