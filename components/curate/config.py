"""Settings of curation, with all quality thresholds and their three profiles."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from components.curate.options import CaptionConfig, ReferenceConfig
from lpm_model.config import FRAMES_PER_LATENT, VIDEO_FPS, setting

Profile = Literal["tiny", "pretrain", "sft"]
MAX_MESH_STRIDE = 6
"""Maximum number of frames between two measurements of a tracked face; beyond that the face counts as lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLimits:
    """Limits that a source file must meet before and while it is decoded."""

    max_bytes: int = setting(4 * 1024**3, help="Larger files are rejected without being read.")
    min_duration_s: float = setting(1.0, help="Shorter sources are rejected.")
    max_duration_s: float = setting(10800.0, help="Longer sources are rejected: split them before ingest.")
    min_side_px: int = setting(48, help="Frames with a smaller side are rejected.")
    max_side_px: int = setting(4320, help="Frames with a larger side are rejected.")
    max_fps: float = setting(240.0, help="Faster sources are rejected (usually a wrong header).")
    max_corrupt_ratio: float = setting(0.02, help="Fraction of frames that the decoder may report as corrupt.")
    max_hold_s: float = setting(
        30.0, help="Longest time for which one frame may be displayed (s); anything longer is a slide show."
    )
    max_stall_s: float = setting(
        8.0, help="Longest wait for one frame (s); after that the decoder counts as hung and its process is killed."
    )
    max_slowness: float = setting(4.0, help="Seconds of decoding allowed per second of video.")
    max_source_s: float = setting(14400.0, help="Time limit for one source in each of the two passes (s).")
    max_rss_mb: float = setting(2048.0, help="Memory limit of the process that analyses a source (MiB).")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """One number per quality decision; None switches a decision off. Every score is stored whatever is decided.

    The profiles `pretrain` and `sft` use the values of published talking-head pipelines (SpeakerVid-5M, TalkVid,
    LatentSync, SkyReels-V4) where the same quantity is measured; where it differs, the help text of the field says so.
    Clip length (3 to 20 s there) is `min_clip_s` and `max_clip_s`. Not measured here: sharp hands, the confidence of a
    transcript, and whether two voices make up 80 % of the speech.
    """

    min_source_height_px: int | None = setting(120, help="Height of the source frame (px).")
    min_source_fps: float | None = setting(10.0, help="Frame rate of the source before resampling (frames/s).")
    min_bits_per_pixel: float | None = setting(
        None,
        help="Encoded bits per pixel and frame of the source: an absolute floor per file, where SpeakerVid-5M drops "
        "the 5 % of a source's clips with the lowest bit rate per pixel.",
    )
    max_copied_ratio: float | None = setting(
        0.3,
        help="Fraction of the clip's frames that are a copy: another source, earlier by name, is the same "
        "recording, with the same movement and audio from frame to frame. Another take that only looks similar "
        "is not a copy.",
    )
    min_luminance: float | None = setting(20.0, help="Mean grey value, 0..255.")
    max_luminance: float | None = setting(225.0, help="Mean grey value, 0..255.")
    max_white_ratio: float | None = setting(0.2, help="Fraction of pixels clipped to white.")
    max_black_ratio: float | None = setting(0.6, help="Fraction of pixels clipped to black.")
    max_flicker_ratio: float | None = setting(
        0.02, help="Frame-to-frame brightness flicker, relative to the mean brightness."
    )
    max_colour_cast: float | None = setting(
        0.7,
        help="Distance of the face's colour from skin under neutral light (radii of the ellipse of skin tones).",
    )
    max_frozen_s: float | None = setting(1.0, help="Longest span without any change of the frame (s).")
    max_static_ratio: float | None = setting(
        None, help="Fraction of the source's frames that do not differ from the previous one."
    )
    max_letterbox_ratio: float | None = setting(
        0.02, help="Fraction of rows and columns of the crop that are black bars."
    )
    max_logo_ratio: float | None = setting(
        0.002,
        help="Fraction of the crop covered by logos in its corners: an area, not a network's watermark probability.",
    )
    max_inset_ratio: float | None = setting(
        0.02, help="Fraction of the source frame covered by a picture-in-picture inset."
    )
    max_text_ratio: float | None = setting(0.01, help="Fraction of the crop covered by text, mean over the clip.")
    max_nudity: float | None = setting(0.2, help="Probability of nudity, if that scorer runs.")
    max_camera_motion_ratio: float | None = setting(
        None, help="Camera travel per frame, as a fraction of the frame's longer side."
    )
    max_shake_ratio: float | None = setting(0.008, help="Camera jitter, as a fraction of the frame's longer side.")
    min_face_px: float | None = setting(40.0, help="Median height of the face, chin to forehead, in the source (px).")
    min_sharpness: float | None = setting(
        0.0001,
        help="Variance of the Laplacian of the face scaled to 128 x 128, grey values in 0..1 (SpeakerVid-5M gives "
        "0.1 and 0.7 on a scale that it does not define).",
    )
    min_face_in_frame_ratio: float | None = setting(
        0.95, help="Fraction of frames with the whole face inside the crop."
    )
    min_one_face_ratio: float | None = setting(
        0.95, help="Fraction of frames whose crop shows exactly one tracked face."
    )
    max_yaw_deg: float | None = setting(60.0, help="Largest head yaw, 95th percentile (degrees).")
    min_head_motion_deg: float | None = setting(
        None,
        help="Spread of the head angles (degrees); drops clips with a motionless head. Other pipelines require a "
        "rating of 3 out of 5 from a language model.",
    )
    min_speech_ratio: float | None = setting(
        None, help="Fraction of frames with anybody's speech (null keeps idle-only clips)."
    )
    max_noise_db: float | None = setting(-25.0, help="Loudness of the quietest tenth of the clip (dBFS).")
    min_snr_db: float | None = setting(
        None, help="Loudness of speech over that of the quietest tenth of the clip (dB)."
    )
    max_music_ratio: float | None = setting(0.3, help="Fraction of frames with sustained tones, as in music.")
    max_speech_pace: float | None = setting(
        0.33, help="Spectral change within 20 ms of speech, 0..1: larger values mean sped-up audio, or noise."
    )
    max_voice_hz: float | None = setting(
        340.0, help="Median pitch of the voices (Hz): children seldom reach it, sped-up audio exceeds it."
    )
    min_speech_mos: float | None = setting(
        None,
        help="Mean opinion score of the speech, 1..5 (DNSMOS), if that scorer runs; no pipeline publishes a value.",
    )
    min_av_sync: float | None = setting(
        0.35,
        help="Lip sync: correlation of the lips with those estimated from audio, within 3 frames, while the person "
        "speaks. Above 0.6 for rendered people with their own voice, above 0.37 for real people, whom the "
        "weights were not fitted to. Not SyncNet's confidence, for which other pipelines require 3 or 5.",
    )
    min_av_offset_frames: float | None = setting(-3.0, help="Frames by which the audio may be early (negative).")
    max_av_offset_frames: float | None = setting(3.0, help="Frames by which the audio may be late.")
    min_dover: float | None = setting(None, help="Video quality, 0..1 (DOVER, both scores fused), if that scorer runs.")
    min_asd_speak_agreement: float | None = setting(
        None,
        help="Fraction of voiced frames on which an active-speaker network agrees with the label, if that scorer runs.",
    )
    min_confidence: float | None = setting(
        0.6,
        help="Mean probability of the frame labels, where other pipelines require a positive active-speaker score "
        "in 90 % of the voiced frames.",
    )
    max_offscreen_voice_ratio: float | None = setting(
        None,
        help="Fraction of the voice that comes from off screen and that the person does not answer: a narrator, or "
        "a partner who is never answered. null keeps people who only listen.",
    )

    @classmethod
    def profile(cls, name: Profile) -> "Thresholds":
        """Return the thresholds of a profile: `tiny` accepts small frames, `pretrain` and `sft` suit real corpora."""
        if name == "tiny":
            return cls()
        pretrain = cls(
            min_source_height_px=720,
            min_source_fps=23.0,
            min_face_px=128.0,
            min_sharpness=0.0005,
            max_luminance=210.0,
            max_static_ratio=0.2,
            max_letterbox_ratio=0.005,
            max_text_ratio=0.03,
            min_av_sync=None,  # the lip-sync weights were fitted to rendered faces; real faces need their own
            min_confidence=0.7,
            min_dover=0.25,
            min_asd_speak_agreement=0.9,
            min_bits_per_pixel=0.01,
        )
        if name == "pretrain":
            return pretrain
        if name == "sft":
            return dataclasses.replace(
                pretrain,
                min_face_px=256.0,
                min_sharpness=0.001,
                max_text_ratio=0.01,
                min_confidence=0.85,
                min_dover=0.6,
                min_head_motion_deg=1.0,
                min_av_offset_frames=-1.0,
                max_av_offset_frames=1.0,
                max_offscreen_voice_ratio=0.5,
            )
        raise ValueError(f"no threshold profile {name!r}: choose tiny, pretrain or sft")


@dataclass(frozen=True, kw_only=True, slots=True)
class ScorerConfig:
    """Which scorers run."""

    disabled: tuple[str, ...] = setting(
        (), help="Scorers to skip, such as text; their columns stay empty and their thresholds have no effect."
    )
    extra: tuple[str, ...] = setting((), help="Optional scorers to run: nudity, speech_quality, light_asd, dover.")
    light_asd: str = setting(
        "", help="Light-ASD's weights as a safetensors file; every worker must be able to read it.", is_path=True
    )
    dover: str = setting("", help="DOVER as an ONNX file; every worker must be able to read it.", is_path=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class StateConfig:
    """How speech and mouth motion are labelled as speak, listen, idle or discard (labels/states.py)."""

    speech_threshold: float = setting(0.5, help="Probability above which a frame counts as speech.")
    motion_window: int = setting(5, help="Frames over which mouth motion is measured to decide who speaks.")
    discard_window: int = setting(
        15, help="Frames over which mouth motion is measured while the person does not speak."
    )
    still_motion: float = setting(0.0047, help="Standard deviation of the gap of a resting mouth (eye distances).")
    moving_motion: float = setting(0.029, help="Standard deviation of the gap of a talking mouth (eye distances).")
    lips_lead_s: float = setting(0.17, help="Time by which lips start to move before the voice.")
    lips_lag_s: float = setting(0.13, help="Time by which lips come to rest after the voice.")
    edge_reach_s: float = setting(
        0.34,
        help="Farthest that an edge of speech is moved once it is known who speaks; 0 keeps the decoded edge.",
    )
    bridge_s: float = setting(0.3, help="Pauses in a person's speech up to this length count as speech.")
    min_state_s: float = setting(0.12, help="Shorter states are merged into their neighbours.")
    listen_hold_s: float = setting(0.55, help="Time by which listening outlasts the partner's speech.")
    min_discard_s: float = setting(
        0.6, help="Shortest span of mouth motion that contradicts the label before its frames are discarded."
    )
    min_sync: float = setting(
        -0.3, help="Correlation of mouth and loudness below which a lone speaker counts as dubbed (noisy: keep it low)."
    )
    max_camera_offset_s: float = setting(
        2.0, help="Largest offset between the clocks of a conversation's two cameras that is searched."
    )
    match_cameras_max: int = setting(
        16,
        help="Maximum number of sources without a conversation_id in one folder for which the two cameras of "
        "a conversation are matched by audio (all pairs are compared, about half a second each); 0 = never.",
    )
    av_offset: Literal["reject", "shift", "keep"] = setting(
        "reject",
        help="What to do with a source whose audio is clearly early or late: reject it, shift its audio into sync, "
        "or keep it as it is.",
    )
    max_av_offset_frames: int = setting(3, help="Audio-video offset up to which a source is accepted as it is.")
    min_av_offset_confidence: float = setting(0.06, help="Offsets with a lower confidence count as unknown.")


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalConfig:
    """Limits of turns, backchannels and interruptions (labels/intervals.py)."""

    bridge_s: float = setting(0.2, help="Silences up to this length belong to the surrounding speech.")
    backchannel_s: float = setting(1.0, help="Longest backchannel.")
    interruption_s: float = setting(
        0.3, help="Shortest overlap of an interruption; a shorter overlap is an ordinary change of turns."
    )
    answer_s: float = setting(
        10.0, help="An off-screen voice counts as a partner's if the person speaks within this time before or after it."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityConfig:
    """How people are matched across cuts and sources (video/identity.py)."""

    frames: int = setting(
        3,
        help="Faces per person that are compared; 0 = people are not matched, and references are not checked to "
        "show the same person.",
    )
    max_distance: float = setting(
        0.5,
        help="Mean distance of two people's embeddings below which they are the same person. The single face of a "
        "reference may be 0.06 further away.",
    )
    max_rendered_distance: float = setting(
        0.28, help="The same for rendered people, whose embeddings are closer together."
    )

    def limit(self, origin: str) -> float:
        """Return the distance limit for people of a source's origin."""
        return self.max_rendered_distance if origin == "performer" else self.max_distance


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationConfig:
    """All settings of `lpm curate`."""

    profile: Profile = setting("tiny", help="Threshold profile.")
    thresholds: dict[str, float | None] = setting(
        factory=dict,
        help="Overrides of the profile by threshold name (see Thresholds); null switches one off.",
    )
    limits: SourceLimits = setting(factory=SourceLimits, help="Limits for source files.")
    scorers: ScorerConfig = setting(factory=ScorerConfig, help="Which scorers run.")
    states: StateConfig = setting(factory=StateConfig, help="How frames are labelled.")
    intervals: IntervalConfig = setting(
        factory=IntervalConfig, help="What counts as a turn, a backchannel or an interruption."
    )
    identity: IdentityConfig = setting(factory=IdentityConfig, help="How people are matched across cuts and sources.")
    size_px: int = setting(128, help="Side of the square clips; a multiple of 16.")
    min_clip_s: float = setting(2.0, help="Shortest clip.")
    max_clip_s: float = setting(5.0, help="Longest clip.")
    stride: float = setting(
        1.0,
        help="Start of the next window in lengths of the previous one: 1 = adjacent, 0.5 = half overlapping.",
    )
    require_audio: bool = setting(True, help="Reject sources without audio; otherwise they count as silent.")
    require_reference: bool = setting(True, help="Drop clips whose person has no good image outside the clip's span.")
    max_references: int = setting(
        3, help="Maximum number of references per clip: one global, then expressions and views if the source shows any."
    )
    references: ReferenceConfig = setting(factory=ReferenceConfig, help="How references are chosen.")
    captions: CaptionConfig = setting(factory=CaptionConfig, help="Which captioner runs.")
    tombstones: str = setting(
        ".work/tombstones.json",
        help="File that lists what was erased and must not return (`lpm data erase`); empty = no check.",
        affects=False,
    )
    use_two_shots: bool = setting(False, help="Use frames with both people even if each person has their own camera.")
    listen_from: Literal["partner", "own"] = setting(
        "partner", help="Microphone of the listener-only track if the partner has a camera."
    )
    max_faces: int = setting(3, help="Maximum number of people detected in one frame; more count as a crowd.")
    mesh_stride: int = setting(2, help="Face landmarks are measured on every n-th frame and interpolated in between.")
    shot_threshold: float = setting(3.0, help="scenedetect's adaptive threshold: a lower value finds more cuts.")
    crop_faces: float = setting(2.4, help="Side of the square crop in face heights.")
    whole_face_ratio: tuple[float, float] = setting(
        (0.25, 0.75),
        help="A square one-person video whose ratio of face height to frame height is in this range is used uncropped.",
    )
    clips_per_shard: int = setting(64, help="Clips in one tar file.", affects="assembly")
    min_retention: float = setting(
        0.02,
        help="Smallest fraction of the sources' seconds that must be kept, otherwise the step fails.",
        affects="assembly",
    )
    max_retention: float = setting(
        1.0,
        help="Largest fraction of the sources' seconds that may be kept; a value below 1 asserts that something is "
        "filtered.",
        affects="assembly",
    )
    executor: Literal["inline", "process", "ray"] = setting(
        "process",
        help="Where sources are processed: worker processes on this machine, Ray Data, or inline in the main "
        "process, which a crash would end.",
        affects=False,
    )
    workers: int = setting(2, help="Sources processed in parallel.", affects=False)
    analysis_cache_gb: float = setting(
        20.0,
        help="Disk space in the cache for analyses that later runs with other clip settings reuse (GB, about 5 "
        "hours of video each); 0 = none.",
        affects=False,
    )
    roi_cache_gb: float = setting(
        8.0,
        help="Disk space for face-region frames that the analysis pass stores so that the clip pass need not decode "
        "them again (GB; one holds 6 to 10 minutes of HD video). At most half of the free space is used, and "
        "all of it is released when a run ends; 0 = decode twice.",
        affects=False,
    )
    autoencoder: str = setting(
        "", help="Folder of the autoencoder that encodes the clips; empty = the bundled tiny one.", is_path=True
    )
    validate: bool = setting(
        True,
        help="Validate the dataset with Great Expectations and write the Data Docs.",
        affects="assembly",
    )

    def __post_init__(self) -> None:
        names = [item.name for item in dataclasses.fields(Thresholds)]
        for unknown in sorted(set(self.thresholds) - set(names)):
            near = difflib.get_close_matches(unknown, names, n=1, cutoff=0.0)
            raise ValueError(
                f"thresholds.{unknown} is unknown: did you mean {near[0]}? `lpm data thresholds` prints them all"
            )
        if self.size_px < 32 or self.size_px % 16:
            raise ValueError(f"size_px is {self.size_px}: use a multiple of 16 that is at least 32")
        if not 0 < self.min_clip_s <= self.max_clip_s:
            raise ValueError(
                f"min_clip_s is {self.min_clip_s}: give more than 0 and at most max_clip_s, {self.max_clip_s}"
            )
        if self.clip_frames[0] > self.clip_frames[1]:
            raise ValueError(
                f"max_clip_s is {self.max_clip_s}: no length of 4k + 1 frames is between min_clip_s and it; raise it"
            )
        if not 0 < self.stride <= 1:
            raise ValueError(f"stride is {self.stride}: use a value in (0, 1]")
        for name in ("mesh_stride", "workers", "max_faces", "max_references"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.mesh_stride > MAX_MESH_STRIDE:
            raise ValueError(
                f"mesh_stride is {self.mesh_stride}: give at most {MAX_MESH_STRIDE}, otherwise faces count as lost"
            )
        for name in ("analysis_cache_gb", "roi_cache_gb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more")
        if not 0 <= self.min_retention <= self.max_retention <= 1:
            raise ValueError(f"min_retention is {self.min_retention}: give 0 <= min_retention <= max_retention <= 1")

    @property
    def active_thresholds(self) -> Thresholds:
        """The profile's thresholds with the user's overrides."""
        own: dict[str, Any] = self.thresholds
        return dataclasses.replace(Thresholds.profile(self.profile), **own)

    @property
    def clip_frames(self) -> tuple[int, int]:
        """Smallest and largest number of frames of a clip, both of the form 4k + 1."""
        step = FRAMES_PER_LATENT
        low = -(-(int(round(self.min_clip_s * VIDEO_FPS)) - 1) // step) * step + 1
        high = (int(round(self.max_clip_s * VIDEO_FPS)) - 1) // step * step + 1
        return max(low, step + 1), high
