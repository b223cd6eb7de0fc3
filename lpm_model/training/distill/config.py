"""Settings of the distillation from Base to Online LPM and of its five stages."""

from dataclasses import dataclass
from typing import Literal

from lpm_model.config import Lora, OnlineConfig, setting
from lpm_model.training.engine.config import Scale


@dataclass(frozen=True, kw_only=True, slots=True)
class OdeStage:
    """Stage 1: ODE regression from intermediate states of the teacher's trajectories to their endpoints."""

    steps: int = setting(40, help="Optimizer steps, each on a whole rollout; 0 skips the stage.")
    objective: Literal["regression", "consistency"] = setting(
        "regression",
        help="Regress to the teacher's endpoint from its states at the student's noise levels (arXiv 2412.07772), or "
        "predict from each state what the EMA predicts from the next one (arXiv 2303.01469, 2602.02214), which stores "
        "every state.",
    )
    learning_rate: float = setting(5e-4, help="Peak learning rate of the student (AdamW, cosine schedule).")
    ema_decay: float = setting(
        0.0,
        help="Decay of the moving average (EMA) that is retained and that consistency takes its targets from; 0 uses "
        "the weights themselves.",
    )

    def __post_init__(self) -> None:
        if self.steps < 0 or not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"steps is {self.steps}, ema_decay {self.ema_decay}: use steps of at least 0 and ema_decay in [0, 1)"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DmdStage:
    """Distribution matching distillation (DMD)."""

    steps: int = setting(0, help="Student steps; 0 skips the stage.")
    critic_steps: int = setting(5, help="Critic steps before each student step.")
    learning_rate: float = setting(3e-5, help="Learning rate of the student, or of the refiner in its stage (AdamW).")
    critic_learning_rate: float = setting(1e-4, help="Learning rate of the critic (AdamW).")
    ema_decay: float = setting(0.9, help="Decay of the student's moving average (EMA), which is retained.")

    def __post_init__(self) -> None:
        if self.steps < 0 or self.critic_steps < 1:
            raise ValueError(f"steps is {self.steps}, critic_steps {self.critic_steps}: use at least 0 and at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class OffPolicyStage(DmdStage):
    """Stage 2: distribution matching on the teacher's clips, re-noised."""

    perceptual_weight: float = setting(
        0.1,
        help="Weight of the distance between decoder features of the student's and the teacher's clip (against mode "
        "collapse); 0 disables it.",
    )
    perceptual_latents: int = setting(
        2, help="Latent frames of a clip whose features are compared, drawn again in each step."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OnPolicyStage(DmdStage):
    """Stages 3 and 4: distribution matching on the student's own rollouts."""

    rollout_latents: int = setting(
        0, help="Latent frames of a rollout, whose last `clip_latents` are matched; 0 = `clip_latents`."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LongStage(DmdStage):
    """Stage 5: streaming long tuning on rollouts that continue from step to step under changing conditions."""

    latents: int = setting(240, help="Latent frames after which a rollout restarts.")
    switch_prob: float = setting(
        0.5,
        help="Probability that, at a chunk boundary of a step, the speaking turn changes, both voices become those of "
        "another clip, or the text changes.",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class CollapseMonitorSettings:
    """Validation of a stage on held-out people: retains the best checkpoint and stops a stage that collapses."""

    every_steps: int = setting(
        20,
        help="Student steps between validations, which also precede the first step and follow the last; 0 disables "
        "them: the last weights are retained.",
    )
    held_out_fraction: float = setting(
        0.05,
        help="Fraction of the people that is held out; with 0, or one person in the dataset, it validates on training "
        "clips.",
    )
    clips: int = setting(4, help="Clips of a validation, always the same ones with the same noise.")
    motion: tuple[float, float] = setting(
        (0.1, 5.0), help="Bounds of the motion relative to the ground truth; beyond them is a collapse."
    )
    variance: tuple[float, float] = setting(
        (0.5, 2.0), help="Bounds of the latent variance relative to the ground truth."
    )
    colour: float = setting(
        1.0, help="Bound of the shift of the mean latent, in standard deviations of the ground truth."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Distillation:
    """Distillation in five stages; each rolls out through lpm_model.rollout and starts from the one before."""

    online: OnlineConfig = setting(OnlineConfig(), help="Chunk, cache and noise levels of the streaming model.")
    ode: OdeStage = setting(OdeStage(), help="Stage 1: ODE regression.")
    off_policy: OffPolicyStage = setting(OffPolicyStage(), help="Stage 2: DMD on the teacher's clips.")
    on_policy: OnPolicyStage = setting(
        OnPolicyStage(steps=3, critic_steps=2), help="Stage 3: DMD on the student's own rollouts."
    )
    refiner: OnPolicyStage = setting(
        OnPolicyStage(), help="Stage 4: DMD of the refiner; needs `online.refiner_sigma` above 0."
    )
    long: LongStage = setting(LongStage(), help="Stage 5: streaming long tuning.")
    collapse_monitor: CollapseMonitorSettings = setting(
        CollapseMonitorSettings(), help="Retains the best checkpoint of each stage and stops a stage that collapses."
    )
    lora: Lora = setting(
        Lora(),
        help="Student, critic and refiner as adapters on the teacher's frozen weights; the model folder holds the "
        "merged weights.",
    )
    scale: Scale = setting(Scale(), help="Processes, which divide the clips of a step among them.", affects=False)
    trajectories: int = setting(48, help="Teacher trajectories for stages 1 and 2.")
    teacher_steps: int = setting(9, help="Euler steps of the teacher.")
    guidance: float = setting(1.5, help="Teacher's classifier-free guidance scale over text and audio.")
    audio_guidance: float | None = setting(
        None, help="Teacher's guidance scale over audio alone, at the cost of a third pass; None = `guidance`."
    )
    noise_aug_prob: float = setting(0.2, help="Probability, for each voice, of noise or a chord under its audio.")
    batch: int = setting(8, help="Clips per step.")
    clip_latents: int = setting(13, help="Latent frames of a rollout to train on, the character image included.")
    gradient_latents: int = setting(
        0, help="Last latent frames of a DMD rollout that carry gradients, to limit memory; 0 = all matched frames."
    )
    motion_weight: float = setting(15.0, help="Additional loss weight of latent cells that move fast, in stage 1.")
    clip_norm: float = setting(1.0, help="Gradient norm limit.")
    checkpoint_steps: int = setting(5, help="Steps between the checkpoints that a killed run resumes from.")
    seed: int = setting(0, help="Seed of data order and noise.")

    def __post_init__(self) -> None:
        if self.trajectories < self.batch:
            raise ValueError(
                f"trajectories is {self.trajectories}: that does not fill a batch of {self.batch}; lower batch"
            )
        if self.refiner.steps and not self.online.refiner_sigma:
            raise ValueError("distill.refiner.steps trains a refiner: set online.refiner_sigma, such as 0.3")
        if self.scale.sequence_parallel > 1 or self.batch % self.scale.world:
            raise ValueError(
                f"distill.scale: {self.scale.world} processes divide a batch of {self.batch} clips among them; make it "
                "a multiple, and leave sequence_parallel at 1"
            )
