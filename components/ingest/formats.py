"""Which files are taken for videos, by how their names end, and how each kind is read."""

from collections.abc import Sequence
from pathlib import PurePosixPath

DEMUXERS = {
    ".mp4": "mov", ".mov": "mov", ".m4v": "mov", ".3gp": "mov", ".3g2": "mov", ".mkv": "matroska", ".webm": "matroska",
    ".avi": "avi", ".mpg": "mpeg", ".mpeg": "mpeg", ".vob": "mpeg", ".ts": "mpegts", ".mts": "mpegts",
    ".m2ts": "mpegts", ".flv": "flv",
}  # fmt: skip
"""How each kind of file is read. Named outright, so that a playlist in disguise can't make the reader follow it."""
_OTHER_VIDEO = {
    ".wmv", ".asf", ".ogv", ".mxf", ".rm", ".rmvb", ".divx", ".dv", ".f4v", ".m1v", ".m2v", ".mpv", ".qt", ".mjpeg",
    ".y4m", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf",
}  # fmt: skip
_SOUND = {
    ".wav", ".mp3", ".m4a", ".aac", ".ac3", ".flac", ".ogg", ".oga", ".opus", ".wma", ".aif", ".aiff", ".amr", ".mka",
}  # fmt: skip


def why_not(file: str, endings: Sequence[str]) -> str | None:
    """Why a file that looks like video or sound is not taken; None for one that is taken or looks like neither.

    Args:
        file: its name or path.
        endings: those that are taken, in lower case.
    """
    ending = PurePosixPath(file).suffix.lower()
    if ending in endings:
        return None
    if ending in DEMUXERS:
        return f"files that end in {ending} are not asked for: add it to ingest.extensions"
    if ending in _OTHER_VIDEO:
        return f"files that end in {ending} are not read: convert it to .mp4"
    if ending in _SOUND:
        return "sound without a picture: put it into the video's own file"
    return None
