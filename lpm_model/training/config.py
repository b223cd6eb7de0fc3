"""Settings of training and distillation; every profile and every stage is a set of these values."""

from dataclasses import dataclass
from typing import Literal

from lpm_model.config import STATES, Lora, ModelConfig, OnlineConfig, setting
from lpm_model.precision import Precision

VOICES = ("speak", "listen")
"""Audio branches."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """Preference tuning (DPO) instead of flow matching alone."""

    conditions: int = setting(0, help="Conditions that are sampled for pairs; 0 leaves preference tuning out.")
    samples: int = setting(4, help="Samples of each.")
    sampler_steps: int = setting(12, help="Euler steps of a sample.")
    guidance: float = setting(2.0, help="Over text and voices.")
    beta: float = setting(100.0, help="Strength of the tie to the model that tuning starts from.")
    flow_weight: float = setting(1.0, help="Weight of flow matching on the true clips.")

    def __post_init__(self) -> None:
        if self.conditions and self.samples < 2:
            raise ValueError(f"samples is {self.samples}: a pair needs at least 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """Processes of a training. Weights, gradients and moments are sharded over all of them (FSDP2).

    They change the speed alone: the batches of one optimizer step (`accumulate`) are shared out among them.
    """

    nodes: int = setting(1, help="Machines.")
    processes: int = setting(1, help="Processes on each machine, one a GPU.")
    sequence_parallel: int = setting(
        1, help="Processes that share the tokens of one batch (Ulysses); the others take batches of their own."
    )

    def __post_init__(self) -> None:
        if min(self.nodes, self.processes, self.sequence_parallel) < 1:
            raise ValueError("scale: nodes, processes and sequence_parallel must be at least 1")
        if self.world % self.sequence_parallel:
            raise ValueError(
                f"scale: {self.world} processes are no groups of sequence_parallel={self.sequence_parallel}: "
                "choose a divisor"
            )

    @property
    def world(self) -> int:
        """All processes."""
        return self.nodes * self.processes

    @property
    def data_parallel(self) -> int:
        """Batches that are computed at the same time."""
        return self.world // self.sequence_parallel


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Measuring a training on people it does not learn from."""

    every_steps: int = setting(0, help="Steps between validations, the last step is one too; 0 leaves them out.")
    held_out_fraction: float = setting(
        0.0, help="Share of the people whose clips are held out, chosen by a hash; always the same ones of a dataset."
    )
    windows: int = setting(32, help="Most windows for each voice.")
    videos: int = setting(2, help="Windows that are rendered beside the truth.")
    sampler_steps: int = setting(12, help="Euler steps of a rendering.")
    guidance: float = setting(2.0, help="Of a rendering, over text and voices.")

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction is {self.held_out_fraction}: give a share from 0 to below 1")
        if self.every_steps and not self.held_out_fraction:
            raise ValueError("validation needs people held out: set train.validation.held_out_fraction, such as 0.05")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseTraining:
    """Flow-matching training of Base LPM."""

    model: ModelConfig = setting(ModelConfig(), help="Shape of the model.")
    preference: Preference = setting(Preference(), help="Preference tuning.")
    scale: Scale = setting(Scale(), help="Processes.", affects=False)
    lora: Lora = setting(
        Lora(),
        help="Low-rank adapters on frozen weights; what `trainable_params` names learns too; the model's folder holds the sum.",
    )
    validation: Validation = setting(Validation(), help="Validation.")
    autoencoder: str = setting(
        "", help="Folder of the autoencoder that made the dataset's latents; empty = the shipped tiny one."
    )
    encoders: str = setting(
        "", help="Folder with the pretrained encoders that the model names: umT5 in text/, wav2vec2 in audio/."
    )
    init_from: str = setting(
        "", help="Folder of weights to start from (`lpm import-wan`, or an earlier stage); empty = random ones."
    )
    steps: int = setting(740, help="Optimizer steps.")
    batch: int = setting(4, help="Clips a step of whole pictures.")
    clip_latents: int = setting(13, help="Latent frames of a training window.")
    shorter_latents: tuple[int, ...] = setting(
        (), help="Lengths of windows for clips that are too short for `clip_latents`; each takes the longest it holds."
    )
    batch_tokens: int = setting(
        0,
        help="Most video tokens of a batch: larger pictures and longer windows come fewer at a time; 0 sets no bound.",
    )
    loader_workers: int = setting(
        0, help="Processes that make batches beforehand; 0 makes them in the training's own.", affects=False
    )
    loader_mb: int = setting(
        512,
        help="Memory for the clips read last, and as much again for their audio features, in each process (MB).",
        affects=False,
    )
    accumulate: int = setting(
        1,
        help="Batches whose gradients make one optimizer step; `steps` and all that counts with them are optimizer "
        "steps.",
    )
    voices: tuple[str, ...] = setting(
        ("speak", "listen"), help="Voices that the model is given; the learned null stands in for the other."
    )
    states: tuple[str, ...] = setting(
        ("idle", "speak", "listen"),
        help="What people do in the windows that are drawn: a window counts by its share of frames in these states.",
    )
    trainable_params: tuple[str, ...] = setting(
        (),
        help="Regular expressions: weights whose name holds one of them learn, the others stay; none lets all learn.",
    )
    references: int = setting(1, help="Most references that a clip is given; the global one comes first.")
    reference_prob: float = setting(
        0.3, help="Chance that a batch is given more than the global one, where its clips have them."
    )
    expressive: float = setting(
        0.0, help="Exponent of a window's motion in its chance to be drawn: above 0 favours expressive people."
    )
    image_start_prob: float = setting(
        0.5,
        help="Chance that a window starts at the clip's first latent, the image; the others start from a continuation.",
    )
    crop_steps: int = setting(
        630,
        help="In the first of these steps the model sees squares of the pictures, where they move, at a seventh of the "
        "tokens (lips are learned from many clips, not from many cells) ...",
    )
    full_frame_every: int = setting(4, help="... but whole pictures in every so many-th of them.")
    crop_batch: int = setting(16, help="Clips in each step on squares.")
    crop_size: int = setting(6, help="Side of a square in latent cells, even.")
    learning_rate: float = setting(1e-3, help="Peak of AdamW's cosine schedule: embeddings, norms, head.")
    muon_lr: float = setting(0.02, help="Peak of Muon's cosine schedule: the matrices inside the blocks.")
    warmup_steps: int = setting(40, help="Steps of linear warm-up.")
    schedule: Literal["cosine", "constant"] = setting("cosine", help="Learning rates after the warm-up.")
    weight_decay: float = setting(0.0, help="Weight decay of both.")
    clip_norm: float = setting(1.0, help="Gradient norm limit.")
    ema_decay: float = setting(0.995, help="Decay of the weight average that is kept.")
    activation_checkpointing: bool = setting(
        False, help="Keep only the input of each block and compute the rest again in the backward pass."
    )
    compile: bool = setting(False, help="Compile each block with torch.compile.")
    precision: Precision = setting(
        "auto",
        help="Of the products: auto is bf16 where the device multiplies it natively, else fp32; weights, gradients and "
        "moments are fp32.",
    )
    noise_aug_prob: float = setting(
        0.2, help="Chance, each, that a voice comes with noise or a chord under it (the motion stays what it was)."
    )
    condition_dropout: float = setting(
        0.1, help="Chance, each, that text, speak, listen or references are absent (needed for guidance)."
    )
    independent_noise_prob: float = setting(
        0.5,
        help="Chance that each latent frame gets its own noise level instead of one a clip (prepares causal "
        "distillation).",
    )
    sigma_shift: float = setting(4.0, help="Shift of the noise level towards high noise (flow.shift_sigma).")
    motion_weight: float = setting(
        15.0, help="Extra loss weight of latent cells that move, so that lips count more than the wall."
    )
    checkpoint_steps: int = setting(100, help="Steps between saved states, from which a killed run resumes.")
    seed: int = setting(0, help="Seed of weights, data order and noise.")

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1 or self.clip_latents < 2:
            raise ValueError("steps and batch must be at least 1, clip_latents at least 2")
        if self.accumulate < 1 or self.references < 1:
            raise ValueError("accumulate and references must be at least 1")
        if self.accumulate % self.scale.data_parallel:
            raise ValueError(
                f"accumulate is {self.accumulate}: {self.scale.data_parallel} processes (scale) share the batches of a "
                "step; make it a multiple"
            )
        if self.model.heads % self.scale.sequence_parallel:
            raise ValueError(
                f"scale.sequence_parallel is {self.scale.sequence_parallel}: choose a divisor of "
                f"the {self.model.heads} heads"
            )
        if self.preference.conditions and self.scale.world > 1:
            raise ValueError("preference tuning runs in one process: set train.scale.processes=1 and train.scale.nodes=1")
        if any(length < 2 for length in self.shorter_latents):
            raise ValueError(f"shorter_latents are {list(self.shorter_latents)}: each must be at least 2")
        for name, allowed in (("voices", VOICES), ("states", tuple(STATES))):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown or (name == "states" and not self.states):
                raise ValueError(f"{name} are {list(getattr(self, name))}: choose from {', '.join(allowed)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OdeStage:
    """Stage 1: from the teacher's states straight to where the teacher ends."""

    steps: int = setting(40, help="Optimizer steps, each a whole roll-out; 0 leaves the stage out.")
    objective: Literal["regression", "consistency"] = setting(
        "regression",
        help="Regress to the teacher's end from its states at the student's noise levels (arXiv 2412.07772), or see "
        "from each of its states what the average sees from the next (arXiv 2303.01469, 2602.02214); that stores "
        "every state.",
    )
    learning_rate: float = setting(5e-4, help="Peak learning rate.")
    ema_decay: float = setting(
        0.0,
        help="Decay of the weight average that is kept and that consistency takes its targets from; 0 is the weights "
        "as they are.",
    )

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 <= self.ema_decay < 1:
            raise ValueError(f"steps is {self.steps}, ema_decay {self.ema_decay}: use steps of at least 0 and ema_decay in [0, 1)")


@dataclass(frozen=True, kw_only=True, slots=True)
class DmdStage:
    """Distribution matching."""

    steps: int = setting(0, help="Student steps; 0 leaves the stage out.")
    critic_steps: int = setting(5, help="Critic steps before each student step.")
    learning_rate: float = setting(3e-5, help="Student's learning rate.")
    critic_learning_rate: float = setting(1e-4, help="Critic's learning rate.")
    ema_decay: float = setting(0.9, help="Decay of the student's weight average, which is kept.")

    def __post_init__(self) -> None:
        if self.steps < 0 or self.critic_steps < 1:
            raise ValueError(f"steps is {self.steps}, critic_steps {self.critic_steps}: use at least 0 and at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class OffPolicyStage(DmdStage):
    """Stage 2: distribution matching on the teacher's re-noised clips."""

    perceptual_weight: float = setting(
        0.1,
        help="Weight of the distance between the autoencoder's decoder features of the student's and of the teacher's "
        "clip (against mode collapse); 0 leaves it out.",
    )
    perceptual_latents: int = setting(
        2, help="Latent frames of a clip whose features are compared, drawn anew in each step."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OnPolicyStage(DmdStage):
    """Stages 3 and 4: distribution matching on the student's own roll-outs."""

    rollout_latents: int = setting(
        0, help="Latent frames of a roll-out; its last `clip_latents` are matched. 0 takes `clip_latents`."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LongStage(DmdStage):
    """Stage 5, streaming long tuning: a roll-out goes on from step to step, and what is steered changes on the way."""

    latents: int = setting(240, help="Latent frames after which a roll-out starts again.")
    switch_prob: float = setting(
        0.5,
        help="Chance that, at a chunk border of a step, the roles change, both voices become another clip's, or the "
        "text does.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CollapseMonitorSettings:
    """Measuring a stage on people it does not learn from."""

    every_steps: int = setting(
        20,
        help="Student steps between measurements; a stage's beginning and end are measured too. 0 leaves them out: "
        "the last weights are kept.",
    )
    held_out_fraction: float = setting(
        0.05,
        help="Share of the people who are held out for it; 0, or a dataset of one person, measures on what is learned.",
    )
    clips: int = setting(4, help="Clips of a measurement, always the same, with the same noise.")
    motion: tuple[float, float] = setting(
        (0.1, 5.0), help="Least and most motion over the truth's; beyond it is a collapse."
    )
    variance: tuple[float, float] = setting((0.5, 2.0), help="The same of the latents' variance.")
    colour: float = setting(1.0, help="Most shift of the mean latent, in the truth's standard deviations.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """From Base to Online LPM in stages; each rolls out through lpm_model.rollout and starts from the one before."""

    online: OnlineConfig = setting(OnlineConfig(), help="Chunk, cache and noise levels of the streaming model.")
    ode: OdeStage = setting(OdeStage(), help="Stage 1.")
    off_policy: OffPolicyStage = setting(OffPolicyStage(), help="Stage 2.")
    on_policy: OnPolicyStage = setting(OnPolicyStage(steps=3, critic_steps=2), help="Stage 3.")
    refiner: OnPolicyStage = setting(OnPolicyStage(), help="Stage 4; needs `online.refiner_sigma` above 0.")
    long: LongStage = setting(LongStage(), help="Stage 5.")
    collapse_monitor: CollapseMonitorSettings = setting(
        CollapseMonitorSettings(), help="Keeps the best weights of each stage and ends one that collapses."
    )
    lora: Lora = setting(
        Lora(),
        help="Student, critic and refiner as adapters on the frozen weights of the teacher; the model's folder "
        "holds sums.",
    )
    scale: Scale = setting(Scale(), help="Processes, which share out the clips of a step.", affects=False)
    trajectories: int = setting(48, help="Teacher trajectories that stages 1 and 2 learn from.")
    teacher_steps: int = setting(9, help="Euler steps of the teacher.")
    guidance: float = setting(1.5, help="Teacher's guidance over text and voices.")
    audio_guidance: float | None = setting(
        None, help="Teacher's guidance over the voices alone, at the price of a third pass; None takes the same."
    )
    noise_aug_prob: float = setting(0.2, help="Chance, each, that a voice comes with noise or a chord under it.")
    batch: int = setting(8, help="Clips a step.")
    clip_latents: int = setting(
        13, help="Latent frames of a roll-out that are learned from, the character image included."
    )
    gradient_latents: int = setting(
        0,
        help="Last latent frames of a roll-out that carry gradients in DMD, for the memory; 0 means all that are "
        "matched.",
    )
    motion_weight: float = setting(15.0, help="Extra loss weight of latent cells that move quickly, in stage 1.")
    clip_norm: float = setting(1.0, help="Gradient norm limit.")
    checkpoint_steps: int = setting(5, help="Steps between saved states, from which a killed run resumes.")
    seed: int = setting(0, help="Seed of data order and noise.")

    def __post_init__(self) -> None:
        if self.trajectories < self.batch:
            raise ValueError(f"trajectories is {self.trajectories}: that does not fill a batch of {self.batch}; lower batch")
        if self.refiner.steps and not self.online.refiner_sigma:
            raise ValueError("distill.refiner.steps trains a refiner: set online.refiner_sigma, such as 0.3")
        if self.scale.sequence_parallel > 1 or self.batch % self.scale.world:
            raise ValueError(
                f"distill.scale: {self.scale.world} processes share out a batch of {self.batch} clips; make it a "
                "multiple, and leave sequence_parallel at 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderTraining:
    """Training of the tiny video autoencoder from pixels."""

    steps: int = setting(2000, help="Optimizer steps.")
    batch: int = setting(8, help="Clips a step.")
    clip_frames: int = setting(9, help="Frames of a clip, 4k + 1.")
    crop_px: int = setting(96, help="Side of the random crop.")
    learning_rate: float = setting(1.5e-3, help="Peak of the cosine schedule, AdamW's.")
    muon_lr: float = setting(0.01, help="Peak of the cosine schedule, Muon's.")
    weight_decay: float = setting(0.01, help="Of both optimizers.")
    clip_norm: float = setting(1.0, help="Largest gradient norm.")
    warmup_steps: int = setting(100, help="Steps of linear warm-up.")
    ema_decay: float = setting(0.998, help="Decay of the weight average that is kept.")
    latent_noise: tuple[float, float] = setting(
        (0.1, 0.1),
        help="Least and most noise on normalised latents, so that the decoder forgives a generator's errors.",
    )
    init_from: str = setting("", help="Folder of an autoencoder to go on from; empty = random weights.")
    decoder_only: bool = setting(False, help="Leave the encoder, and so all latents, as they are.")
    edge_weight: float = setting(0.5, help="Weight of the loss on differences between neighbouring pixels and frames.")
    motion_weight: float = setting(3.0, help="Extra weight of pixels that move.")
    checkpoint_steps: int = setting(500, help="Steps between saved states, from which a killed run resumes.")
    seed: int = setting(0, help="Seed of weights, data order and noise.")
