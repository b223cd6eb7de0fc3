"""The contract of a transport (WebSocket, WebRTC, LiveKit, ...): the methods that it implements and the service calls.

A transport hands client messages to a `Connection` (`connection.py`), which opens or resumes the session and applies
them, and implements `Transport` for the way back. It touches nothing else of the service. `websocket.py` is one; the
test `tests/serving/transports/test_connection.py` contains a second one without sockets and fMP4.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from serving.media.audio import Pcm
from serving.protocol import ServerMessage


class MediaEncoder(Protocol):
    """Encodes the media of one viewer; created, used and closed on the engine's thread."""

    @property
    def mime(self) -> str:
        """Media type that `media.init` announces."""
        ...

    @property
    def init_segment(self) -> bytes:
        """Payload of `media.init`; empty where the transport has media tracks of its own."""
        ...

    def encode(self, pts: int, frames: NDArray[np.uint8], voice: Pcm) -> bytes:
        """Encode one chunk and return the payload of its `media.chunk`.

        A transport with media tracks of its own (WebRTC) hands frames and voice to them here and returns b"".

        Args:
            pts: media time (samples) of the first frame.
            frames: uint8 [T, H, W, 3].
            voice: int16 [1000 T] of the same span.
        """
        ...

    def close(self) -> None:
        """Free the codecs."""
        ...


class Transport(Protocol):
    """One viewer's connection as the service sees it; everything but the encoder runs on the event loop."""

    @property
    def closed(self) -> bool:
        """Whether the connection is over."""
        ...

    def send(self, messages: list[ServerMessage]) -> None:
        """Queue control messages in order; never blocks and never drops one of an open connection."""
        ...

    def send_media(self, message: ServerMessage, payload: bytes) -> None:
        """Queue `media.init` or `media.chunk` with the encoder's payload."""
        ...

    async def media_ready(self) -> bool:
        """Wait until another media message may be queued (backpressure); return False once closed."""
        ...

    def make_encoder(self, size_px: int, start_pts: int) -> MediaEncoder:
        """Create the encoder of a stream whose first frame has media time `start_pts` (samples)."""
        ...

    def close(self) -> None:
        """Close the connection after all queued messages have been sent."""
        ...
