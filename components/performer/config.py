"""Options of the synthetic-data generator."""

from dataclasses import dataclass
from typing import Literal

from lpm_model.config import setting


@dataclass(frozen=True, kw_only=True, slots=True)
class PerformerConfig:
    """A corpus of two-person conversations."""

    conversations: int = setting(24, help="Number of conversations; each has its own two people.", affects="assembly")
    seconds_per_conversation: float = setting(25.0, help="Length of each (s).")
    two_shots: bool = setting(
        True, help="Also render a third camera that shows both people; curation skips it if each person has a camera."
    )
    size_px: int = setting(128, help="Height and width of the frames of one person (px).")
    seed: int = setting(0, help="Seed of people, sentences and timing.")
    bank: Literal["train", "heldout"] = setting(
        "train", help="Sentences and people: for training, or reserved for the benchmark."
    )
    head: str = setting("", help="Path of an ICT-FaceKit npz; empty = the packaged head.", is_path=True)
    voices: tuple[str, ...] = setting(
        (), help="Voices to choose from; empty = all packaged voices and their pitch shifts."
    )
    workers: int = setting(2, help="Rendering processes.", affects=False)
    crf: int = setting(16, help="H.264 quality: lower is better, and larger files.")

    def __post_init__(self) -> None:
        if self.conversations < 1:
            raise ValueError(f"conversations is {self.conversations}: ask for at least 1")
        if not 2.0 <= self.seconds_per_conversation <= 600.0:
            raise ValueError(f"seconds_per_conversation is {self.seconds_per_conversation}: give 2 to 600")
        if self.size_px < 32 or self.size_px % 16:
            raise ValueError(f"size_px is {self.size_px}: give a multiple of 16, at least 32")
        if len(self.voices) == 1:
            raise ValueError(f"voices is {self.voices}: give at least two, or none for the packaged ones")
        if not 0 <= self.seed < 50:
            raise ValueError(f"seed is {self.seed}: give 0 to 49, to keep people for training and for tests apart")
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}: give at least 1")
        if not 0 <= self.crf <= 51:
            raise ValueError(f"crf is {self.crf}: give 0 to 51")
