"""Prometheus metrics of a live endpoint: first frame, frame gap, compute, missed deadlines, sessions, audio, drift."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.drift import Drift

_FIRST_FRAME_S = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_GAP_S = (0.02, 0.05, 0.1, 0.15, 0.18, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 2.0)
_RATIO = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0)
_DISTANCE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
_LAB = (0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
_LOG2 = (0.1, 0.25, 0.5, 1.0, 2.0, 3.0)
_CHANGE = (0.05, 0.15, 0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0)


class Metrics:
    """Metrics of one server; each server in a process needs its own registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.first_frame = Histogram(
            "lpm_first_frame_seconds",
            "From session.open to the first frame",
            buckets=_FIRST_FRAME_S,
            registry=registry,
        )
        self.frame_gap = Histogram(
            "lpm_chunk_gap_seconds", "Time between two chunks of one viewer", buckets=_GAP_S, registry=registry
        )
        self.compute = Histogram(
            "lpm_compute_seconds_per_video_second",
            "Model, decoder and H.264 time per second of video",
            buckets=_RATIO,
            registry=registry,
        )
        self.chunks = Counter("lpm_chunks", "Chunks generated", registry=registry)
        self.deadline_misses = Counter(
            "lpm_deadline_misses", "Chunks ready after their playback time", registry=registry
        )
        self.sessions_active = Gauge(
            "lpm_character_sessions_active", "Conversations that hold a slot", registry=registry
        )
        self.session_slots = Gauge("lpm_character_session_slots", "Conversations that fit", registry=registry)
        self.sessions_queued = Gauge(
            "lpm_character_sessions_queued", "Viewers that wait in the queue", registry=registry
        )
        self.sessions_ended = Counter(
            "lpm_character_sessions_ended", "Conversations that ended", ["reason"], registry=registry
        )
        self.user_dropped = Counter(
            "lpm_user_samples_dropped", "Live user samples dropped as too old", registry=registry
        )
        self.drift_identity = Histogram(
            "lpm_drift_identity",
            "Thumbnail distance (1 - cosine) of a two-second window to the conversation's first",
            buckets=_DISTANCE,
            registry=registry,
        )
        self.drift_colour = Histogram(
            "lpm_drift_colour_de",
            "Mean colour distance (CIE Lab) of a window to the conversation's first",
            buckets=_LAB,
            registry=registry,
        )
        self.drift_sharpness = Histogram(
            "lpm_drift_sharpness_log2",
            "Absolute log2 ratio of sharpness of a window to the conversation's first",
            buckets=_LOG2,
            registry=registry,
        )
        self.motion = Histogram(
            "lpm_motion", "Mean change between frames over two seconds (255ths)", buckets=_CHANGE, registry=registry
        )
        self.interruptions = Counter("lpm_interruptions", "Interruptions requested", registry=registry)

    def observe_drift(self, windows: list[Drift]) -> None:
        """Record what a conversation's drift meter has measured."""
        for window in windows:
            self.drift_identity.observe(window.identity)
            self.drift_colour.observe(window.colour_de)
            self.drift_sharpness.observe(abs(window.sharpness_log2))
            self.motion.observe(window.motion)
