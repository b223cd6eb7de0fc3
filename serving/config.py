"""Limits and policy of a live endpoint: one frozen dataclass; durations in seconds, sizes in bytes or samples."""

from dataclasses import dataclass

from lpm_model.config import AUDIO_RATE

DISCLOSURE = "This is an AI-generated character. Its face, motion and voice are synthetic."


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """What one server allows; the defaults suit a laptop that serves one visitor."""

    max_sessions: int = 1
    """Conversations that run at the same time; more wait in the queue."""
    queue_limit: int = 8
    """Visitors that may wait for a slot; the next one is refused."""
    grace_s: float = 30.0
    """A detached session keeps its state this long for `session.resume`."""
    user_buffer_s: float = 2.0
    """Live user audio kept at most; beyond it the oldest is dropped and counted."""
    character_buffer_s: float = 30.0
    """Character audio that may wait to be spoken; credits count down from it."""
    max_segments: int = 16
    """Segments that may wait behind the one being spoken."""
    max_message_bytes: int = 512 * 1024
    """Largest client message, text or binary."""
    max_text_chars: int = 2000
    """Longest text of one `text.speak` or `text.prompt`."""
    max_bad_messages: int = 20
    """Malformed messages after which the connection is closed."""
    start_timeout_s: float = 10.0
    """A connection must open or resume a session within this time."""
    stall_timeout_s: float = 10.0
    """A client that takes no data for this long is detached."""
    drain_s: float = 10.0
    """On shutdown, running segments get this long to finish."""
    silence_rms: float = 0.003
    """User audio below this level (full scale 1.0) does not count as speech."""
    listening_hold_s: float = 0.5
    """The state stays `listening` this long after the user's last sound."""
    allowed_origins: tuple[str, ...] = ()
    """Browser origins admitted besides the server's own, such as `https://app.example`; `*` admits all."""
    require_consent: bool = True
    """Refuse characters whose character.json has no consent_ref."""
    float8: bool = False
    """8-bit products inside the model's blocks: faster on a GPU, a little less exact."""
    fused: bool = False
    """Compile the model's blocks, and on a GPU play chunks back as CUDA graphs: slow to start, then faster."""
    disclosure: str = DISCLOSURE
    """Sentence shown to the user and sent in `session.ready`."""

    def __post_init__(self) -> None:
        for name in ("max_sessions", "max_segments", "max_message_bytes", "max_text_chars", "max_bad_messages"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("grace_s", "start_timeout_s", "stall_timeout_s", "user_buffer_s", "character_buffer_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 seconds")
        if not self.disclosure.strip():
            raise ValueError("disclosure is empty; synthetic people must be announced, write one sentence")

    @property
    def user_buffer_samples(self) -> int:
        """Capacity of the user's live buffer in samples."""
        return round(self.user_buffer_s * AUDIO_RATE)

    @property
    def character_buffer_samples(self) -> int:
        """Capacity of the character's speech buffer in samples."""
        return round(self.character_buffer_s * AUDIO_RATE)
