"""Limits and policy of a live endpoint: one frozen dataclass; durations in seconds, sizes in bytes or samples."""

from dataclasses import dataclass

from lpm_model.config import AUDIO_RATE, setting

DISCLOSURE = "This is an AI-generated character. Its face, motion and voice are synthetic."
_AT_LEAST_ONE = (
    "max_sessions", "max_segments", "max_message_bytes", "max_body_bytes", "max_text_chars", "max_bad_messages",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """Limits of one server; the defaults suit a laptop that serves one viewer."""

    max_sessions: int = setting(1, help="Conversations that run at the same time; more wait in the queue.")
    queue_limit: int = setting(8, help="Viewers that may wait for a slot; further ones are refused.")
    grace_s: float = setting(30.0, help="A detached session retains its state this long for `session.resume`.")
    user_buffer_s: float = setting(
        2.0, help="Largest buffer of live user audio; beyond it the oldest is dropped and counted."
    )
    character_buffer_s: float = setting(
        30.0, help="Character audio that may be queued to be spoken; credits count down from it."
    )
    max_segments: int = setting(16, help="Segments that may wait behind the one being spoken.")
    max_message_bytes: int = setting(512 * 1024, help="Largest client message, text or binary.")
    max_body_bytes: int = setting(
        16 * 1024 * 1024, help="Largest body of an HTTP request; beyond it the answer is 413."
    )
    max_text_chars: int = setting(2000, help="Longest text of one `text.speak` or `text.prompt`.")
    max_bad_messages: int = setting(20, help="Malformed messages after which the connection is closed.")
    start_timeout_s: float = setting(10.0, help="A connection must open or resume a session within this time.")
    stall_timeout_s: float = setting(10.0, help="A client that takes no data for this long is detached.")
    drain_s: float = setting(10.0, help="On shutdown, running segments get this long to finish.")
    silence_rms: float = setting(0.003, help="User audio below this level (full scale 1.0) does not count as speech.")
    listening_hold_s: float = setting(0.5, help="The state stays `listening` this long after the user was last heard.")
    allowed_origins: tuple[str, ...] = setting(
        (), help="Browser origins admitted besides the server's own, such as `https://app.example`; `*` admits all."
    )
    require_consent: bool = setting(True, help="Refuse characters whose character.json has no consent_ref.")
    float8: bool = setting(False, help="FP8 matmuls inside the model's blocks: faster on a GPU, slightly less exact.")
    compile: bool = setting(
        False, help="Compile the model's blocks, and on a GPU replay chunks as CUDA graphs: slow start, then faster."
    )
    disclosure: str = setting(DISCLOSURE, help="Sentence shown to the user and sent in `session.ready`.")

    def __post_init__(self) -> None:
        for name in _AT_LEAST_ONE:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("grace_s", "start_timeout_s", "stall_timeout_s", "user_buffer_s", "character_buffer_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 seconds")
        if not self.disclosure.strip():
            raise ValueError(
                "disclosure is empty; viewers must be told that the character is synthetic, write one sentence"
            )

    @property
    def user_buffer_samples(self) -> int:
        """Capacity of the user's live buffer in samples."""
        return round(self.user_buffer_s * AUDIO_RATE)

    @property
    def character_buffer_samples(self) -> int:
        """Capacity of the character's speech buffer in samples."""
        return round(self.character_buffer_s * AUDIO_RATE)
