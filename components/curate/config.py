"""What a user can set about curation; thresholds live in one place and come in three profiles."""

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from components.curate.options import CaptionConfig, ReferenceConfig
from lpm_model.config import FRAMES_PER_LATENT, VIDEO_FPS, setting

Profile = Literal["tiny", "pretrain", "sft"]
MOST_STRIDE = 6
"""Most frames between two measurements of a face that is followed; longer without, it counts as not seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceLimits:
    """What a source file may be at most and at least before any of its pictures are looked at."""

    max_bytes: int = setting(4 * 1024**3, help="Larger files are refused unread.")
    min_duration_s: float = setting(1.0, help="Shorter sources are refused.")
    max_duration_s: float = setting(10800.0, help="Longer sources are refused: split them before ingest.")
    min_side_px: int = setting(48, help="Smaller pictures are refused.")
    max_side_px: int = setting(4320, help="Larger pictures are refused.")
    max_fps: float = setting(240.0, help="Faster sources are refused (a wrong header, mostly).")
    max_corrupt_ratio: float = setting(0.02, help="Share of pictures that the decoder may report as damaged.")
    max_hold_s: float = setting(30.0, help="Longest time for which one picture may stand (s); more is a slide show.")
    max_stall_s: float = setting(
        8.0, help="Longest wait for one picture (s); then the decoder hangs, and its process is ended."
    )
    max_slowness: float = setting(4.0, help="Seconds of decoding allowed for each second of video.")
    max_source_s: float = setting(14400.0, help="Longest work on one source in each of the two passes (s).")
    max_rss_mb: float = setting(2048.0, help="Memory of the process that decodes a source for the first time (MiB).")


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """One number per quality decision; None switches that decision off. Every score is stored whatever is decided.

    The profiles `pretrain` and `sft` take the values that published pipelines of talking people give (SpeakerVid-5M,
    TalkVid, LatentSync, SkyReels-V4) wherever the same quantity is measured; where ours is another one, its field says
    what it means. Clip length (3 to 20 s there) is `min_clip_s` and `max_clip_s`. What they ask and nothing here
    measures: sharp hands, a transcript's confidence, and that two voices make up 80 % of the speech.
    """

    min_source_height_px: int | None = setting(120, help="Height of the source picture (px).")
    min_source_fps: float | None = setting(10.0, help="Frame rate of the source before resampling (frames/s).")
    min_bits_per_pixel: float | None = setting(
        None,
        help="Encoded bits per pixel and frame of the source: a floor for the file, where SpeakerVid-5M drops the 5 % "
        "of a source's clips with the lowest bit rate per pixel.",
    )
    max_copied_ratio: float | None = setting(
        0.3,
        help="Share of the clip's frames that are a copy: another source, earlier by name, is the same recording, "
        "with the same movement and sound from frame to frame. One that only looks alike, such as another take, is no "
        "copy.",
    )
    min_luminance: float | None = setting(20.0, help="Mean grey value, 0..255.")
    max_luminance: float | None = setting(225.0, help="Mean grey value, 0..255.")
    max_white_ratio: float | None = setting(0.2, help="Share of pixels burnt to white.")
    max_black_ratio: float | None = setting(0.6, help="Share of pixels drowned in black.")
    max_flicker_ratio: float | None = setting(
        0.02, help="Beat of the light from frame to frame, as a share of the light."
    )
    max_colour_cast: float | None = setting(
        0.7,
        help="How far the face's colour lies outside that of skin under neutral light (radii of the ellipse of skin "
        "tones).",
    )
    max_frozen_s: float | None = setting(1.0, help="Longest span without any change of the picture (s).")
    max_static_ratio: float | None = setting(
        None, help="Share of the source's pictures that do not differ from the one before."
    )
    max_letterbox_ratio: float | None = setting(0.02, help="Share of rows and columns of the crop that are black bars.")
    max_logo_ratio: float | None = setting(
        0.002, help="Share of the crop under marks in its corners: an area, not a network's probability of a watermark."
    )
    max_inset_ratio: float | None = setting(0.02, help="Share of the source picture under a picture in the picture.")
    max_text_ratio: float | None = setting(0.01, help="Share of the crop under text, mean over the clip.")
    max_nudity: float | None = setting(0.2, help="Probability of nudity, where that scorer runs.")
    max_camera_motion_ratio: float | None = setting(
        None, help="Travel of the camera a frame, as a share of the picture's longer side."
    )
    max_shake_ratio: float | None = setting(
        0.008, help="Jitter of the camera, as a share of the picture's longer side."
    )
    min_face_px: float | None = setting(40.0, help="Median height of the face, chin to forehead, in the source (px).")
    min_sharpness: float | None = setting(
        0.0001,
        help="Variance of the Laplacian of the face scaled to 128 x 128, grey values in 0..1 (SpeakerVid-5M gives 0.1 "
        "and 0.7 on a scale that it does not define).",
    )
    min_face_in_frame_ratio: float | None = setting(0.95, help="Share of frames whose whole face lies inside the crop.")
    min_one_face_ratio: float | None = setting(0.95, help="Share of frames whose crop shows exactly one tracked face.")
    max_yaw_deg: float | None = setting(60.0, help="Largest head turn, 95th percentile (degrees).")
    min_head_motion_deg: float | None = setting(
        None,
        help="Spread of the head angles (degrees): drops lifeless clips, where others ask a language model for 3 of 5.",
    )
    min_speech_ratio: float | None = setting(
        None, help="Share of frames with anybody's speech (None keeps idle-only clips)."
    )
    max_noise_db: float | None = setting(-25.0, help="Loudness of the quietest tenth of the clip (dB of full scale).")
    min_snr_db: float | None = setting(None, help="Loudness of speech over that of the quietest tenth (dB).")
    max_music_ratio: float | None = setting(0.3, help="Share of frames in which tones are held, as in music.")
    max_speech_pace: float | None = setting(
        0.33, help="Variety of the spectrum gone through in 20 ms of speech, 0..1: more is played too fast, or noise."
    )
    max_voice_hz: float | None = setting(
        340.0, help="Median pitch of the voices (Hz): children seldom reach it; more is played too fast."
    )
    min_speech_mos: float | None = setting(
        None, help="Opinion of the speech, 1..5 (DNSMOS), where that scorer runs; nobody publishes a value."
    )
    min_av_sync: float | None = setting(
        0.35,
        help="Agreement (correlation) of the lips with what the sound suggests within 3 frames of its place, where "
        "somebody speaks: above 0.6 for rendered people and their own voice, above 0.37 for real ones, whom its "
        "weights do not know; not SyncNet's confidence, of which 3 and 5 are asked elsewhere.",
    )
    min_av_offset_frames: float | None = setting(-3.0, help="Frames by which the sound may come early.")
    max_av_offset_frames: float | None = setting(3.0, help="Frames by which the sound may come late.")
    min_dover: float | None = setting(
        None, help="Quality of the picture, 0..1 (DOVER, both scores fused), where that scorer runs."
    )
    min_asd_speak_agreement: float | None = setting(
        None,
        help="Share of the voiced frames on which an active-speaker network says as the label does whether the person "
        "speaks, where that scorer runs.",
    )
    min_confidence: float | None = setting(
        0.6,
        help="Mean probability of the frame labels, where others ask an active-speaker network for a positive score "
        "in 90 % of the voiced frames.",
    )
    max_offscreen_voice_ratio: float | None = setting(
        None,
        help="Share of the voice that comes from off the scene and with which the person does not talk: a narrator, "
        "or a partner who is never answered. None keeps those who only listen.",
    )

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

    disabled: tuple[str, ...] = setting(
        (), help="Scorers to leave out, such as text; their columns stay empty and their thresholds decide nothing."
    )
    extra: tuple[str, ...] = setting((), help="Scorers to run as well: nudity, speech_quality, light_asd, dover.")
    light_asd: str = setting("", help="Light-ASD's weights as a safetensors file; all workers must see it.")
    dover: str = setting("", help="DOVER as an ONNX file; all workers must see it.")


@dataclass(frozen=True, kw_only=True, slots=True)
class StateConfig:
    """How speech and mouth motion become speak, listen, idle or discard."""

    speech_threshold: float = setting(0.5, help="Probability above which a frame counts as speech.")
    motion_window: int = setting(5, help="Frames over which a mouth's movement is measured to find who speaks.")
    discard_window: int = setting(
        15, help="Frames over which a mouth's movement is measured where its person does not speak."
    )
    still_motion: float = setting(0.0047, help="Spread of the mouth gap (in eye distances) of a mouth at rest.")
    moving_motion: float = setting(0.029, help="Spread of the mouth gap (in eye distances) of a talking mouth.")
    lips_lead_s: float = setting(0.17, help="Lips start to move so long before the voice.")
    lips_lag_s: float = setting(0.13, help="Lips come to rest so long after the voice.")
    edge_reach_s: float = setting(
        0.34,
        help="Farthest that an edge of speech is moved once it is known who speaks; 0 leaves it where it was decoded.",
    )
    bridge_s: float = setting(0.3, help="Pauses in a person's speech up to this length count as speech.")
    min_state_s: float = setting(0.12, help="Shorter states are merged into their neighbours.")
    listen_hold_s: float = setting(0.55, help="Listening lasts so much longer than the other's speech.")
    min_discard_s: float = setting(
        0.6, help="A mouth has to move for so long against the evidence before the frames are discarded."
    )
    min_sync: float = setting(
        -0.3, help="Correlation of mouth and loudness below which a lone speaker counts as dubbed (noisy: keep it low)."
    )
    max_camera_offset_s: float = setting(
        2.0, help="Largest difference between the clocks of a conversation's two cameras that is searched."
    )
    match_cameras_max: int = setting(
        16,
        help="Sources without a conversation_id, in one folder, up to which the two cameras of a conversation are "
        "found by their sound (each is compared with each: about half a second a pair); 0 = never.",
    )
    av_offset: Literal["reject", "shift", "keep"] = setting(
        "reject",
        help="What is done with a source whose sound is surely early or late: left out, its sound put right, or "
        "nothing.",
    )
    max_av_offset_frames: int = setting(
        3, help="Offset between sound and picture up to which a source is taken as it is."
    )
    min_av_offset_confidence: float = setting(0.06, help="Less confident offsets count as unknown.")


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalConfig:
    """Limits of turns, backchannels and interruptions (see intervals.py)."""

    bridge_s: float = setting(0.2, help="Silences up to this length belong to the speech around them.")
    backchannel_s: float = setting(1.0, help="Longest short answer.")
    interruption_s: float = setting(0.3, help="Shortest overlap of an interruption; below it is an ordinary hand-over.")
    answer_s: float = setting(
        10.0, help="A voice off the scene is a partner's if the person speaks within so long before or after it."
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class IdentityConfig:
    """How people are recognised across cuts and sources."""

    frames: int = setting(
        3, help="Faces of a person that are looked at; 0 = people are not matched, nor references checked to show them."
    )
    max_distance: float = setting(
        0.5,
        help="Mean distance of two people's embeddings below which they are one. A single face, of a reference, may "
        "lie 0.06 further away.",
    )
    max_rendered_distance: float = setting(0.28, help="The same for people of the performer, who lie closer together.")

    def limit(self, origin: str) -> float:
        """The distance that holds for people of a source's origin."""
        return self.max_rendered_distance if origin == "performer" else self.max_distance


@dataclass(frozen=True, kw_only=True, slots=True)
class CurationConfig:
    """Everything `curate` can be told."""

    profile: Profile = setting("tiny", help="Which thresholds hold.")
    thresholds: dict[str, float | None] = setting(
        factory=dict,
        help="Thresholds of your own over those of the profile, by name (see Thresholds); null switches one off.",
    )
    limits: SourceLimits = setting(factory=SourceLimits, help="What a source file may be.")
    scorers: ScorerConfig = setting(factory=ScorerConfig, help="What measures the clips.")
    states: StateConfig = setting(factory=StateConfig, help="How frames are labelled.")
    intervals: IntervalConfig = setting(
        factory=IntervalConfig, help="What counts as a turn, a backchannel, an interruption."
    )
    identity: IdentityConfig = setting(factory=IdentityConfig, help="How people are recognised across cuts.")
    size_px: int = setting(128, help="Side of the square clips; a multiple of 16.")
    min_clip_s: float = setting(2.0, help="Shortest clip.")
    max_clip_s: float = setting(5.0, help="Longest clip.")
    stride: float = setting(
        1.0,
        help="Start of the next window in lengths of the window before it: 1 = side by side, 0.5 = half overlapping.",
    )
    require_audio: bool = setting(True, help="Refuse sources without sound; otherwise they count as silent.")
    require_reference: bool = setting(True, help="Drop clips whose person has no good picture outside the clip's span.")
    max_references: int = setting(
        3, help="At most so many references a clip: one global, then expressions and views where the source shows any."
    )
    references: ReferenceConfig = setting(factory=ReferenceConfig, help="Which references are taken.")
    captions: CaptionConfig = setting(factory=CaptionConfig, help="Who writes the captions.")
    tombstones: str = setting(
        ".work/tombstones.json",
        help="What must not come back (`lpm data erase`); a missing file forbids nothing, as does an empty name.",
        affects=False,
    )
    use_two_shots: bool = setting(False, help="Use pictures of both people although each has a camera of their own.")
    listen_from: Literal["partner", "own"] = setting(
        "partner", help="Which microphone the listener-only track comes from where the partner has a camera."
    )
    max_faces: int = setting(3, help="People looked for in one picture; more is a crowd.")
    mesh_stride: int = setting(2, help="Face landmarks are measured on every n-th frame and interpolated between.")
    shot_threshold: float = setting(3.0, help="scenedetect's adaptive threshold: lower finds more cuts.")
    crop_faces: float = setting(2.4, help="Side of the square crop in face heights.")
    whole_face_ratio: tuple[float, float] = setting(
        (0.25, 0.75), help="A square one-person picture whose face height is this share of it is used whole."
    )
    clips_per_shard: int = setting(64, help="Clips in one tar file.", affects="assembly")
    min_retention: float = setting(
        0.02, help="Smallest share of the sources' seconds that may be left, else the step fails.", affects="assembly"
    )
    max_retention: float = setting(
        1.0,
        help="Largest share of the sources' seconds that may be left: a lower bound proves that something is filtered.",
        affects="assembly",
    )
    executor: Literal["inline", "process", "ray"] = setting(
        "process",
        help="Where sources are worked on: processes on this machine, Ray Data, or this very process, which a crash "
        "ends.",
        affects=False,
    )
    workers: int = setting(2, help="Sources worked on at once.", affects=False)
    analysis_cache_gb: float = setting(
        20.0,
        help="Room in the cache for first passes that a run with other settings of the second can use (GB, about 5 "
        "hours of video each); 0 = none are kept.",
        affects=False,
    )
    roi_cache_gb: float = setting(
        8.0,
        help="Most room on the disk for pictures that the first pass keeps so that the second need not decode them "
        "again (GB; one holds 6 to 10 minutes of HD video). Never more than half of what is free is taken, and none "
        "is left when a run has ended; 0 = all is decoded twice.",
        affects=False,
    )
    autoencoder: str = setting(
        "", help="Folder of the autoencoder whose latents are written; empty = the shipped tiny one."
    )
    validate: bool = setting(
        True,
        help="Run the Great Expectations checkpoint over the manifest and write its Data Docs.",
        affects="assembly",
    )

    def __post_init__(self) -> None:
        names = [item.name for item in dataclasses.fields(Thresholds)]
        for odd in sorted(set(self.thresholds) - set(names)):
            near = difflib.get_close_matches(odd, names, n=1, cutoff=0.0)
            raise ValueError(f"thresholds.{odd} is unknown: did you mean {near[0]}? `lpm data thresholds` prints them all")
        if self.size_px < 32 or self.size_px % 16:
            raise ValueError(f"size_px is {self.size_px}: use a multiple of 16 that is at least 32")
        if not 0 < self.min_clip_s <= self.max_clip_s:
            raise ValueError(f"min_clip_s is {self.min_clip_s}: give more than 0 and at most max_clip_s, {self.max_clip_s}")
        if self.clip_frames[0] > self.clip_frames[1]:
            raise ValueError(f"max_clip_s is {self.max_clip_s}: no 4k + 1 frames lie between min_clip_s and it; raise it")
        if not 0 < self.stride <= 1:
            raise ValueError(f"stride is {self.stride}: use a value in (0, 1]")
        for name in ("mesh_stride", "workers", "max_faces", "max_references"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give at least 1")
        if self.mesh_stride > MOST_STRIDE:
            raise ValueError(f"mesh_stride is {self.mesh_stride}: give at most {MOST_STRIDE}, lest faces count as lost")
        for name in ("analysis_cache_gb", "roi_cache_gb"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more")
        if not 0 <= self.min_retention <= self.max_retention <= 1:
            raise ValueError(f"min_retention is {self.min_retention}: give 0 <= min_retention <= max_retention <= 1")

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
