"""Opens an untrusted file for the first time; runs in a worker process, which the decoder may crash."""

from pathlib import Path
from typing import Any

from components.ingest.formats import DEMUXERS


def open_video(file: Path) -> dict[str, Any]:
    """Return {"duration_s": seconds} if the first video frame decodes, else {"rejection": reason}."""
    import av

    demuxer = DEMUXERS[file.suffix.lower()]
    try:
        with av.open(str(file), format=demuxer, options={"protocol_whitelist": "file"}) as container:
            if not container.streams.video:
                return {"rejection": "no video stream"}
            if next(container.decode(video=0), None) is None:
                return {"rejection": "no frame could be decoded"}
            return {"duration_s": float((container.duration or 0) / av.time_base)}
    except (av.FFmpegError, OSError, ValueError, MemoryError) as error:
        return {"rejection": f"not readable as video: {getattr(error, 'strerror', None) or error}"}
