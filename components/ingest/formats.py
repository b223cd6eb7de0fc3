"""File extensions of video and audio, and the demuxer for each video format."""

from collections.abc import Sequence
from pathlib import PurePosixPath

DEMUXERS = {
    ".mp4": "mov", ".mov": "mov", ".m4v": "mov", ".3gp": "mov", ".3g2": "mov", ".mkv": "matroska", ".webm": "matroska",
    ".avi": "avi", ".mpg": "mpeg", ".mpeg": "mpeg", ".vob": "mpeg", ".ts": "mpegts", ".mts": "mpegts",
    ".m2ts": "mpegts", ".flv": "flv",
}  # fmt: skip
"""FFmpeg demuxer per extension. Naming it prevents a disguised playlist from being followed."""
_OTHER_VIDEO = {
    ".wmv", ".asf", ".ogv", ".mxf", ".rm", ".rmvb", ".divx", ".dv", ".f4v", ".m1v", ".m2v", ".mpv", ".qt", ".mjpeg",
    ".y4m", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf",
}  # fmt: skip
_AUDIO = {
    ".wav", ".mp3", ".m4a", ".aac", ".ac3", ".flac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff", ".amr", ".mka",
}  # fmt: skip


def rejection_reason(file: str, extensions: Sequence[str]) -> str | None:
    """Return why a video or audio file is rejected by its extension; None for accepted videos and other files.

    Args:
        file: name or path.
        extensions: accepted extensions in lower case.
    """
    extension = PurePosixPath(file).suffix.lower()
    if extension in extensions:
        return None
    if extension in DEMUXERS:
        return f"{extension} files are switched off: add the extension to ingest.extensions"
    if extension in _OTHER_VIDEO:
        return f"{extension} files are not supported: convert it to .mp4"
    if extension in _AUDIO:
        return "audio without video: mux it into the video file"
    return None
