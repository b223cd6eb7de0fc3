"""What a user can set about curation; thresholds live in one place and come in three profiles."""

import dataclasses
import difflib
from dataclasses import dataclass, field
from typing import Any, Literal

from components.curate.options import CaptionConfig, ReferenceConfig
from lpm_model.config import FRAMES_PER_LATENT, VIDEO_FPS

Profile = Literal["tiny", "pretrain", "sft"]
MOST_STRIDE = 6
"""Most frames between two measurements of a face that is followed; longer without, it counts as not seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLimits:
    """What a source file may be at most and at least before any of its pictures are looked at."""

    max_bytes: int = 4 * 1024**3
    """Larger files are refused unread."""
    min_duration_s: float = 1.0
    """Shorter sources are refused."""
    max_duration_s: float = 10800.0
    """Longer sources are refused: split them before ingest."""
    min_side_px: int = 48
    """Smaller pictures are refused."""
    max_side_px: int = 4320
    """Larger pictures are refused."""
    max_fps: float = 240.0
    """Faster sources are refused (a wrong header, mostly)."""
    max_corrupt_ratio: float = 0.02
    """Share of pictures that the decoder may report as damaged."""
    max_hold_s: float = 30.0
    """Longest time for which one picture may stand (s); more is a slide show."""
    max_stall_s: float = 8.0
    """Longest wait for one picture (s); then the decoder hangs, and its process is ended."""
    max_slowness: float = 4.0
    """Seconds of decoding allowed for each second of video."""
    max_source_s: float = 14400.0
    """Longest work on one source in each of the two passes (s)."""
    max_rss_mb: float = 2048.0
    """Memory of the process that decodes a source for the first time (MiB)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """One number per quality decision; None switches that decision off. Every score is stored whatever is decided.

    The profiles `pretrain` and `sft` take the values that published pipelines of talking people give (SpeakerVid-5M,
    TalkVid, LatentSync, SkyReels-V4) wherever the same quantity is measured; where ours is another one, its field says
    what it means. Clip length (3 to 20 s there) is `min_clip_s` and `max_clip_s`. What they ask and nothing here
    measures: sharp hands, a transcript's confidence, and that two voices make up 80 % of the speech.
    """

    min_source_height_px: int | None = 120
    """Height of the source picture (px)."""
    min_source_fps: float | None = 10.0
    """Frame rate of the source before resampling (frames/s)."""
    min_bits_per_pixel: float | None = None
    """Encoded bits per pixel and frame of the source: a floor for the file, where SpeakerVid-5M drops the 5 % of a
    source's clips with the lowest bit rate per pixel."""
    max_copied_ratio: float | None = 0.3
    """Share of the clip's frames that are a copy: another source, earlier by name, is the same recording, with the same
    movement and sound from frame to frame. One that only looks alike, such as another take, is no copy."""
    min_luminance: float | None = 20.0
    """Mean grey value, 0..255."""
    max_luminance: float | None = 225.0
    """Mean grey value, 0..255."""
    max_white_ratio: float | None = 0.2
    """Share of pixels burnt to white."""
    max_black_ratio: float | None = 0.6
    """Share of pixels drowned in black."""
    max_flicker_ratio: float | None = 0.02
    """Beat of the light from frame to frame, as a share of the light."""
    max_colour_cast: float | None = 0.7
    """How far the face's colour lies outside that of skin under neutral light (radii of the ellipse of skin tones)."""
    max_frozen_s: float | None = 1.0
    """Longest span without any change of the picture (s)."""
    max_static_ratio: float | None = None
    """Share of the source's pictures that do not differ from the one before."""
    max_letterbox_ratio: float | None = 0.02
    """Share of rows and columns of the crop that are black bars."""
    max_logo_ratio: float | None = 0.002
    """Share of the crop under marks in its corners: an area, not a network's probability of a watermark."""
    max_inset_ratio: float | None = 0.02
    """Share of the source picture under a picture in the picture."""
    max_text_ratio: float | None = 0.01
    """Share of the crop under text, mean over the clip."""
    max_nudity: float | None = 0.2
    """Probability of nudity, where that scorer runs."""
    max_camera_motion_ratio: float | None = None
    """Travel of the camera a frame, as a share of the picture's longer side."""
    max_shake_ratio: float | None = 0.008
    """Jitter of the camera, as a share of the picture's longer side."""
    min_face_px: float | None = 40.0
    """Median height of the face, chin to forehead, in the source (px)."""
    min_sharpness: float | None = 0.0001
    """Variance of the Laplacian of the face scaled to 128 x 128, grey values in 0..1 (SpeakerVid-5M gives 0.1 and 0.7
    on a scale that it does not define)."""
    min_face_in_frame_ratio: float | None = 0.95
    """Share of frames whose whole face lies inside the crop."""
    min_one_face_ratio: float | None = 0.95
    """Share of frames whose crop shows exactly one tracked face."""
    max_yaw_deg: float | None = 60.0
    """Largest head turn, 95th percentile (degrees)."""
    min_head_motion_deg: float | None = None
    """Spread of the head angles (degrees): drops lifeless clips, where others ask a language model for 3 of 5."""
    min_speech_ratio: float | None = None
    """Share of frames with anybody's speech (None keeps idle-only clips)."""
    max_noise_db: float | None = -25.0
    """Loudness of the quietest tenth of the clip (dB of full scale)."""
    min_snr_db: float | None = None
    """Loudness of speech over that of the quietest tenth (dB)."""
    max_music_ratio: float | None = 0.3
    """Share of frames in which tones are held, as in music."""
    max_speech_pace: float | None = 0.33
    """Variety of the spectrum gone through in 20 ms of speech, 0..1: more is played too fast, or noise."""
    max_voice_hz: float | None = 340.0
    """Median pitch of the voices (Hz): children seldom reach it; more is played too fast."""
    min_speech_mos: float | None = None
    """Opinion of the speech, 1..5 (DNSMOS), where that scorer runs; nobody publishes a value."""
    min_av_sync: float | None = 0.35
    """Agreement (correlation) of the lips with what the sound suggests within 3 frames of its place, where somebody
    speaks: above 0.6 for rendered people and their own voice, above 0.37 for real ones, whom its weights do not know;
    not SyncNet's confidence, of which 3 and 5 are asked elsewhere."""
    min_av_offset_frames: float | None = -3.0
    """Frames by which the sound may come early."""
    max_av_offset_frames: float | None = 3.0
    """Frames by which the sound may come late."""
    min_dover: float | None = None
    """Quality of the picture, 0..1 (DOVER, both scores fused), where that scorer runs."""
    min_asd_speak_agreement: float | None = None
    """Share of the voiced frames on which an active-speaker network says as the label does whether the person speaks,
    where that scorer runs."""
    min_confidence: float | None = 0.6
    """Mean probability of the frame labels, where others ask an active-speaker network for a positive score in 90 % of
    the voiced frames."""
    max_offscreen_voice_ratio: float | None = None
    """Share of the voice that comes from off the scene and with which the person does not talk: a narrator, or a
    partner who is never answered. None keeps those who only listen."""

    @classmethod
    def profile(cls, name: Profile) -> "Thresholds":
        """The thresholds of a named profile: `tiny` takes small pictures, `pretrain` and `sft` are for real corpora."""
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
            min_av_sync=None,  # the lips' weights know rendered faces: real ones need their own
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
    """What measures the clips besides what every clip needs."""

    off: tuple[str, ...] = ()
    """Scorers to leave out, such as text; their columns stay empty and their thresholds decide nothing."""
    extra: tuple[str, ...] = ()
    """Scorers to run as well: nudity, speech_quality, light_asd, dover."""
    light_asd: str = ""
    """Light-ASD's weights as a safetensors file; all workers must see it."""
    dover: str = ""
    """DOVER as an ONNX file; all workers must see it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StateConfig:
    """How speech and mouth motion become speak, listen, idle or discard."""

    speech_threshold: float = 0.5
    """Probability above which a frame counts as speech."""
    motion_window: int = 5
    """Frames over which a mouth's movement is measured to find who speaks."""
    discard_window: int = 15
    """Frames over which a mouth's movement is measured where its person does not speak."""
    still_motion: float = 0.0047
    """Spread of the mouth gap (in eye distances) of a mouth at rest."""
    moving_motion: float = 0.029
    """Spread of the mouth gap (in eye distances) of a talking mouth."""
    lips_lead_s: float = 0.17
    """Lips start to move so long before the voice."""
    lips_lag_s: float = 0.13
    """Lips come to rest so long after the voice."""
    edge_reach_s: float = 0.34
    """Farthest that an edge of speech is moved once it is known who speaks; 0 leaves it where it was decoded."""
    bridge_s: float = 0.3
    """Pauses in a person's speech up to this length count as speech."""
    min_state_s: float = 0.12
    """Shorter states are merged into their neighbours."""
    listen_hold_s: float = 0.55
    """Listening lasts so much longer than the other's speech."""
    min_discard_s: float = 0.6
    """A mouth has to move for so long against the evidence before the frames are discarded."""
    min_sync: float = -0.3
    """Correlation of mouth and loudness below which a lone speaker counts as dubbed (noisy: keep it low)."""
    max_camera_offset_s: float = 2.0
    """Largest difference between the clocks of a conversation's two cameras that is searched."""
    match_cameras_max: int = 16
    """Sources without a conversation_id, in one folder, up to which the two cameras of a conversation are found by
    their sound (each is compared with each: about half a second a pair); 0 = never."""
    av_offset: Literal["reject", "shift", "keep"] = "reject"
    """What is done with a source whose sound is surely early or late: left out, its sound put right, or nothing."""
    max_av_offset_frames: int = 3
    """Offset between sound and picture up to which a source is taken as it is."""
    min_av_offset_confidence: float = 0.06
    """Less confident offsets count as unknown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalConfig:
    """Limits of turns, backchannels and interruptions (see intervals.py)."""

    bridge_s: float = 0.2
    """Silences up to this length belong to the speech around them."""
    backchannel_s: float = 1.0
    """Longest short answer."""
    interruption_s: float = 0.3
    """Shortest overlap of an interruption; below it is an ordinary hand-over."""
    answer_s: float = 10.0
    """A voice off the scene is a partner's if the person speaks within so long before or after it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityConfig:
    """How people are recognised across cuts and sources."""

    frames: int = 3
    """Faces of a person that are looked at; 0 = people are not matched, nor references checked to show them."""
    max_distance: float = 0.5
    """Mean distance of two people's embeddings below which they are one. A single face, of a reference, may lie 0.06
    further away."""
    max_rendered_distance: float = 0.28
    """The same for people of the performer, who lie closer together."""

    def limit(self, origin: str) -> float:
        """The distance that holds for people of a source's origin."""
        return self.max_rendered_distance if origin == "performer" else self.max_distance


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationConfig:
    """Everything `curate` can be told."""

    profile: Profile = "tiny"
    """Which thresholds hold."""
    thresholds: dict[str, float | None] = field(default_factory=dict)
    """Thresholds of your own over those of the profile, by name (see Thresholds); null switches one off."""
    limits: SourceLimits = field(default_factory=SourceLimits)
    """What a source file may be."""
    scorers: ScorerConfig = field(default_factory=ScorerConfig)
    """What measures the clips."""
    states: StateConfig = field(default_factory=StateConfig)
    """How frames are labelled."""
    intervals: IntervalConfig = field(default_factory=IntervalConfig)
    """What counts as a turn, a backchannel, an interruption."""
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    """How people are recognised across cuts."""
    size_px: int = 128
    """Side of the square clips; a multiple of 16."""
    min_clip_s: float = 2.0
    """Shortest clip."""
    max_clip_s: float = 5.0
    """Longest clip."""
    stride: float = 1.0
    """Start of the next window in lengths of the window before it: 1 = side by side, 0.5 = half overlapping."""
    require_audio: bool = True
    """Refuse sources without sound; otherwise they count as silent."""
    require_reference: bool = True
    """Drop clips whose person has no good picture outside the clip's span."""
    max_references: int = 3
    """At most so many references a clip: one global, then expressions and views where the source shows any."""
    references: ReferenceConfig = field(default_factory=ReferenceConfig)
    """Which references are taken."""
    captions: CaptionConfig = field(default_factory=CaptionConfig)
    """Who writes the captions."""
    tombstones: str = ".work/tombstones.json"
    """What must not come back (`lpm data forget`); a missing file forbids nothing, as does an empty name."""
    use_two_shots: bool = False
    """Use pictures of both people although each has a camera of their own."""
    listen_from: Literal["partner", "own"] = "partner"
    """Which microphone the listener-only track comes from where the partner has a camera."""
    max_faces: int = 3
    """People looked for in one picture; more is a crowd."""
    mesh_stride: int = 2
    """Face landmarks are measured on every n-th frame and interpolated between."""
    shot_threshold: float = 3.0
    """scenedetect's adaptive threshold: lower finds more cuts."""
    crop_faces: float = 2.4
    """Side of the square crop in face heights."""
    whole_face_ratio: tuple[float, float] = (0.25, 0.75)
    """A square one-person picture whose face height is this share of it is used whole."""
    clips_per_shard: int = 64
    """Clips in one tar file."""
    min_retention: float = 0.02
    """Smallest share of the sources' seconds that may be left, else the step fails."""
    max_retention: float = 1.0
    """Largest share of the sources' seconds that may be left: a lower bound proves that something is filtered."""
    executor: Literal["inline", "process", "ray"] = "process"
    """Where sources are worked on: processes on this machine, Ray Data, or this very process, which a crash ends."""
    workers: int = 2
    """Sources worked on at once."""
    keep_looks_gb: float = 20.0
    """Room in the cache for first passes that a run with other settings of the second can use (GB, about 5 hours of
    video each); 0 = none are kept."""
    keep_pictures_gb: float = 8.0
    """Most room on the disk for pictures that the first pass keeps so that the second need not decode them again (GB;
    one holds 6 to 10 minutes of HD video). Never more than half of what is free is taken, and none is left when a run
    has ended; 0 = all is decoded twice."""
    autoencoder: str = ""
    """Folder of the autoencoder whose latents are written; empty = the shipped tiny one."""
    validate: bool = True
    """Run the Great Expectations checkpoint over the manifest and write its Data Docs."""

    def __post_init__(self) -> None:
        names = [item.name for item in dataclasses.fields(Thresholds)]
        for odd in sorted(set(self.thresholds) - set(names)):
            near = difflib.get_close_matches(odd, names, n=1, cutoff=0.0)
            raise ValueError(f"no threshold {odd!r}: did you mean {near[0]}? `lpm data thresholds` prints them all")
        if self.size_px < 32 or self.size_px % 16:
            raise ValueError(f"size_px is {self.size_px}: use a multiple of 16 that is at least 32")
        if not 0 < self.min_clip_s <= self.max_clip_s:
            raise ValueError(f"clips of {self.min_clip_s}..{self.max_clip_s} s: min_clip_s must be in (0, max_clip_s]")
        if self.clip_frames[0] > self.clip_frames[1]:
            raise ValueError(f"no 4k+1 frames lie in {self.min_clip_s}..{self.max_clip_s} s: raise max_clip_s")
        if not 0 < self.stride <= 1:
            raise ValueError(f"stride is {self.stride}: use a value in (0, 1]")
        for name in ("mesh_stride", "workers", "max_faces", "max_references"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.mesh_stride > MOST_STRIDE:
            raise ValueError(f"mesh_stride is {self.mesh_stride}: give at most {MOST_STRIDE}, lest faces count as lost")
        for name in ("keep_looks_gb", "keep_pictures_gb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more")
        if not 0 <= self.min_retention <= self.max_retention <= 1:
            raise ValueError(f"retention {self.min_retention}..{self.max_retention}: give 0 <= min <= max <= 1")

    @property
    def active_thresholds(self) -> Thresholds:
        """The thresholds that hold."""
        own: dict[str, Any] = self.thresholds
        return dataclasses.replace(Thresholds.profile(self.profile), **own)

    @property
    def clip_frames(self) -> tuple[int, int]:
        """Fewest and most frames of a clip, both of the form 4k+1."""
        step = FRAMES_PER_LATENT
        low = -(-(int(round(self.min_clip_s * VIDEO_FPS)) - 1) // step) * step + 1
        high = (int(round(self.max_clip_s * VIDEO_FPS)) - 1) // step * step + 1
        return max(low, step + 1), high
