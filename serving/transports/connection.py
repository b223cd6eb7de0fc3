"""One viewer's connection without its transport: token check, open or resume, messages, detach.

A transport parses what it receives (`protocol.parse_client`, or messages that it builds itself) and calls `start` with
the first message, `receive` with every later one, `reject` for unparsable messages, and `end` when it is lost.
"""

import secrets

from serving.protocol import ClientMessage, Closed, Error, ProtocolError, SessionOpen, SessionResume
from serving.service import CharacterService, LiveSession
from serving.transports.api import Transport


class Connection:
    """Drives one session on behalf of one viewer; shared by all transports."""

    def __init__(self, service: CharacterService, transport: Transport, token: str) -> None:
        self._service, self._transport, self._token = service, transport, token
        self._live: LiveSession | None = None
        self._bad_messages = 0

    @property
    def over(self) -> bool:
        """Whether the session has ended; False before it has started."""
        return self._live is not None and self._live.over

    async def start(self, message: ClientMessage) -> None:
        """Open or resume a session with the viewer's first message; opening may wait in the queue.

        Cancel it when the viewer leaves meanwhile.

        Raises:
            ProtocolError: the session is refused; answer with `refuse`.
        """
        if isinstance(message, SessionResume):
            self._live = self._service.resume(message, self._transport)
            return
        if not isinstance(message, SessionOpen):
            raise ProtocolError("unexpected_message", "the first message must be session.open or session.resume")
        if not secrets.compare_digest((message.token or "").encode(), self._token.encode()):
            raise ProtocolError("unauthorized", "wrong token; use the address that the server printed")
        self._live = await self._service.open(message, self._transport)

    def refuse(self, error: ProtocolError) -> None:
        """Send an error to a viewer without a session, and close the connection."""
        self._transport.send([to_message(error), Closed(reason=error.code)])
        self._transport.close()

    async def receive(self, message: ClientMessage, payload: bytes = b"") -> None:
        """Apply one message of a running session, with the PCM16 bytes of `audio.append`."""
        try:
            await self._service.handle(self._running(), message, payload)
        except ProtocolError as error:
            await self.reject(error)

    async def reject(self, error: ProtocolError) -> None:
        """Report a message that cannot be accepted; too many of them, or an oversized one, end the session."""
        live = self._running()
        live.emit([to_message(error)])
        self._bad_messages += 1
        if self._bad_messages >= self._service.config.max_bad_messages or error.code == "too_big":
            await self._service.close(live, "protocol_violation")

    def end(self) -> None:
        """Detach the session, which waits for a resume, and close the transport's sending side."""
        if self._live is not None:
            self._service.detach(self._live, self._transport)
        self._transport.close()

    def _running(self) -> LiveSession:
        if self._live is None:
            raise RuntimeError("no session: call start first")
        return self._live


def to_message(error: ProtocolError) -> Error:
    """Return the wire message of a protocol error."""
    retry = 1000 if error.retryable else None
    return Error(
        code=error.code, message=str(error), retryable=error.retryable, retry_after_ms=retry, event_id=error.event_id
    )
