"""Send queue of one viewer: ordered, bounded, and never more than two media segments deep."""

import asyncio
from collections import deque

from serving.protocol import ServerMessage

MAX_MEDIA = 2
MAX_MESSAGES = 512


class Outbox:
    """Messages of one connection in order; control messages are never dropped, media waits at its source."""

    def __init__(self) -> None:
        self._items: deque[tuple[ServerMessage, bytes]] = deque()
        self._media = 0
        self._changed = asyncio.Event()
        self.closed = False
        self.overflowed = False

    def __len__(self) -> int:
        return len(self._items)

    def send(self, messages: list[ServerMessage]) -> None:
        """Queue control messages; a viewer that reads none of them is disconnected."""
        for message in messages:
            self._items.append((message, b""))
        if len(self._items) > MAX_MESSAGES:
            self.overflowed = True
            self.close()
        self._changed.set()

    def send_media(self, message: ServerMessage, payload: bytes) -> None:
        """Queue one media message with its payload."""
        self._items.append((message, payload))
        self._media += 1
        self._changed.set()

    async def media_ready(self) -> bool:
        """Wait until media may be queued; return False once the connection is over."""
        while self._media >= MAX_MEDIA and not self.closed:
            await self._wait()
        return not self.closed

    async def take(self) -> tuple[ServerMessage, bytes] | None:
        """Return the next message and its payload, or None once the outbox is closed and empty."""
        while not self._items:
            if self.closed:
                return None
            await self._wait()
        message, payload = self._items.popleft()
        if payload:
            self._media -= 1
            self._changed.set()
        return message, payload

    def close(self) -> None:
        """Accept nothing more; queued messages can still be taken."""
        self.closed = True
        self._changed.set()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()
