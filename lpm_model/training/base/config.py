"""Settings of Base LPM's training; every profile and every stage is a set of these values."""

from dataclasses import dataclass
from typing import Literal

from lpm_model.config import STATES, Lora, ModelConfig, setting
from lpm_model.precision import Precision
from lpm_model.training.engine.config import Scale

VOICES = ("speak", "listen")
"""Audio branches: the person's own audio and the partner's audio."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """Preference tuning (DPO) in place of plain flow matching."""

    conditions: int = setting(0, help="Conditions to sample pairs for; 0 disables preference tuning.")
    samples: int = setting(4, help="Samples of each condition.")
    sampler_steps: int = setting(12, help="Euler steps of a sample.")
    guidance: float = setting(2.0, help="Classifier-free guidance scale over text and audio.")
    beta: float = setting(100.0, help="Strength of the KL constraint towards the model that tuning starts from.")
    flow_weight: float = setting(1.0, help="Weight of the flow-matching loss on the ground-truth clips.")

    def __post_init__(self) -> None:
        if self.conditions and self.samples < 2:
            raise ValueError(f"samples is {self.samples}: a pair needs at least 2")


@dataclass(frozen=True, kw_only=True, slots=True)
class Validation:
    """Validation on held-out people."""

    every_steps: int = setting(
        0, help="Optimizer steps between validations, which also follow the last step; 0 disables validation."
    )
    held_out_fraction: float = setting(
        0.0,
        help="Fraction of the people whose clips are held out, chosen by a hash of the person.",
    )
    windows: int = setting(32, help="Maximum number of windows for each voice.")
    videos: int = setting(2, help="Windows that are rendered next to the ground truth.")
    sampler_steps: int = setting(12, help="Euler steps of a rendering.")
    guidance: float = setting(2.0, help="Classifier-free guidance scale of a rendering, over text and audio.")

    def __post_init__(self) -> None:
        if not 0 <= self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction is {self.held_out_fraction}: choose a fraction from 0 to below 1")
        if self.every_steps and not self.held_out_fraction:
            raise ValueError("validation needs held-out people: set train.validation.held_out_fraction, such as 0.05")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseTraining:
    """Flow-matching training of Base LPM."""

    model: ModelConfig = setting(ModelConfig(), help="Shape of the model.")
    preference: Preference = setting(Preference(), help="Preference tuning.")
    scale: Scale = setting(Scale(), help="Processes.", affects=False)
    lora: Lora = setting(
        Lora(),
        help="Low-rank adapters on frozen weights; parameters that match `trainable_params` are trained as well; the "
        "model folder holds the merged weights.",
    )
    validation: Validation = setting(Validation(), help="Validation.")
    autoencoder: str = setting(
        "",
        help="Folder of the autoencoder that made the dataset's latents; empty = the shipped tiny one.",
        is_path=True,
    )
    encoders: str = setting(
        "",
        help="Folder with the pretrained encoders that the model names: umT5 in text/, wav2vec2 in audio/.",
        is_path=True,
    )
    init_from: str = setting(
        "",
        help="Folder of weights to initialise from (`lpm import-wan`, or an earlier stage); empty = random weights.",
        is_path=True,
    )
    steps: int = setting(740, help="Optimizer steps.")
    batch: int = setting(4, help="Clips in a batch of full frames.")
    clip_latents: int = setting(13, help="Latent frames of a training window.")
    shorter_latents: tuple[int, ...] = setting(
        (), help="Window lengths for clips shorter than `clip_latents`; each clip uses the longest that fits."
    )
    batch_tokens: int = setting(
        0,
        help="Maximum number of video tokens in a batch, which limits batches of large or long windows; 0 = no limit.",
    )
    loader_workers: int = setting(
        0, help="Processes that prefetch batches; 0 computes them in the training process.", affects=False
    )
    loader_mb: int = setting(
        512,
        help="Cache of recently read clips, and once more of their audio features, in each process (MB).",
        affects=False,
    )
    accumulate: int = setting(
        1,
        help="Batches whose gradients are accumulated for one optimizer step; `steps` and all other step counts are "
        "optimizer steps.",
    )
    voices: tuple[str, ...] = setting(
        ("speak", "listen"), help="Audio branches that the model receives; the other one gets the learned null."
    )
    states: tuple[str, ...] = setting(
        ("idle", "speak", "listen"),
        help="States of the sampled windows: a window is sampled in proportion to its fraction of frames in them.",
    )
    trainable_params: tuple[str, ...] = setting(
        (),
        help="Regular expressions: parameters whose name matches one of them are trained, the others are frozen; "
        "empty = train all.",
    )
    references: int = setting(1, help="Maximum number of reference images of a clip; the global one comes first.")
    reference_prob: float = setting(
        0.3, help="Probability that a batch has more than the global reference, if its clips have them."
    )
    expressive: float = setting(
        0.0, help="Exponent of a window's motion in its sampling weight: above 0 favours expressive people."
    )
    image_start_prob: float = setting(
        0.5,
        help="Probability that a window starts at the clip's first latent, the image; other windows start from a "
        "continuation.",
    )
    crop_steps: int = setting(
        0,
        help="The first steps, which train on random latent crops where clips move, at a seventh of the tokens (lips "
        "are learned from many clips, not from many cells).",
    )
    full_frame_every: int = setting(4, help="Every n-th of the crop steps trains on full frames.")
    crop_batch: int = setting(16, help="Clips in a batch of crops.")
    crop_size: int = setting(6, help="Side of a crop in latent cells, even.")
    learning_rate: float = setting(
        1e-3, help="Peak learning rate of AdamW, which trains embeddings, norms, biases and the head."
    )
    muon_lr: float = setting(0.02, help="Peak learning rate of Muon, which trains the matrices of the blocks.")
    warmup_steps: int = setting(40, help="Optimizer steps of linear warm-up of both learning rates.")
    schedule: Literal["cosine", "constant"] = setting("cosine", help="Learning rates after the warm-up.")
    weight_decay: float = setting(0.0, help="Weight decay of both optimizers.")
    clip_norm: float = setting(1.0, help="Gradient norm limit.")
    ema_decay: float = setting(
        0.995, help="Decay of the moving average of the weights (EMA), which the model folder receives."
    )
    activation_checkpointing: bool = setting(
        False, help="Store only the input of each block and recompute its activations in the backward pass."
    )
    compile: bool = setting(False, help="Compile each block with torch.compile.")
    precision: Precision = setting(
        "auto",
        help="Type of matmuls: auto is bf16 where the device supports it natively, else fp32; weights, gradients and "
        "moments are fp32.",
    )
    noise_aug_prob: float = setting(
        0.2, help="Probability, for each voice, of noise or a chord under its audio (the motion stays the same)."
    )
    condition_dropout: float = setting(
        0.1, help="Probability, for each of text, speak, listen and references, of being dropped (needed for guidance)."
    )
    independent_noise_prob: float = setting(
        0.5,
        help="Probability that each latent frame gets its own noise level instead of one per clip (prepares causal "
        "distillation).",
    )
    sigma_shift: float = setting(4.0, help="Shift of the noise level towards high noise (flow.shift_sigma).")
    motion_weight: float = setting(
        15.0, help="Additional loss weight of latent cells that move, so that lips count more than the background."
    )
    checkpoint_steps: int = setting(100, help="Optimizer steps between the checkpoints that a killed run resumes from.")
    seed: int = setting(0, help="Seed of weights, data order and noise.")

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 1), ("clip_latents", 2), ("accumulate", 1), ("references", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least {least}")
        if self.accumulate % self.scale.data_parallel:
            raise ValueError(
                f"accumulate is {self.accumulate}: {self.scale.data_parallel} processes (scale) divide the batches of "
                "a step among them; make it a multiple"
            )
        if self.model.heads % self.scale.sequence_parallel:
            raise ValueError(
                f"scale.sequence_parallel is {self.scale.sequence_parallel}: choose a divisor of "
                f"the {self.model.heads} heads"
            )
        if self.preference.conditions and self.scale.world > 1:
            raise ValueError(
                "preference tuning runs in one process: set train.scale.processes=1 and train.scale.nodes=1"
            )
        if any(length < 2 for length in self.shorter_latents):
            raise ValueError(f"shorter_latents are {list(self.shorter_latents)}: each must be at least 2")
        for name, allowed in (("voices", VOICES), ("states", tuple(STATES))):
            unknown = sorted(set(getattr(self, name)) - set(allowed))
            if unknown or (name == "states" and not self.states):
                raise ValueError(f"{name} are {list(getattr(self, name))}: choose from {', '.join(allowed)}")
