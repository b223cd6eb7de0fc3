"""What an operator watches: first frame, frame gap, compute, deadline misses, sessions, dropped audio (Prometheus)."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_FIRST_FRAME_S = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
_GAP_S = (0.02, 0.05, 0.1, 0.15, 0.18, 0.2, 0.25, 0.3, 0.4, 0.6, 1.0, 2.0)
_RATIO = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0)


class Metrics:
    """The metrics of one server; give a registry of its own to each server in a process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.first_frame = Histogram(
            "lpm_first_frame_seconds",
            "From session.open to the first picture",
            buckets=_FIRST_FRAME_S,
            registry=registry,
        )
        self.frame_gap = Histogram(
            "lpm_chunk_gap_seconds", "Between two chunks of one viewer", buckets=_GAP_S, registry=registry
        )
        self.compute = Histogram(
            "lpm_compute_seconds_per_video_second",
            "Model, decoder and H.264 time for one second of video",
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
        self.sessions_queued = Gauge("lpm_character_sessions_queued", "Visitors that wait", registry=registry)
        self.sessions_ended = Counter(
            "lpm_character_sessions_ended", "Conversations that ended", ["reason"], registry=registry
        )
        self.user_dropped = Counter(
            "lpm_user_samples_dropped", "Live user samples dropped as too old", registry=registry
        )
        self.interruptions = Counter("lpm_interruptions", "Interruptions asked for", registry=registry)
