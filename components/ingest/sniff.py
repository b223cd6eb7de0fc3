"""The first look into a file, in a process that it may take down."""

from pathlib import Path
from typing import Any

from components.ingest.formats import DEMUXERS


def look_into(file: Path) -> dict[str, Any]:
    """{"seconds": length} of a video whose first picture can be decoded, else {"refusal": why}."""
    import av

    demuxer = DEMUXERS[file.suffix.lower()]
    try:
        with av.open(str(file), format=demuxer, options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                return {"refusal": "no video stream"}
            if next(container.decode(video=0), None) is None:
                return {"refusal": "no picture could be decoded"}
            return {"seconds": float((container.duration or 0) / av.time_base)}
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        return {"refusal": f"not readable as video: {getattr(error, 'strerror', None) or error}"}
