"""What uvicorn's HTTP protocols leave open: heads without an end, and answers that nobody reads.

A head is the request line and the header fields. Before it is whole, no code of the service runs,
so that its size and time are bounded here, for both of uvicorn's parsers. `limits` looks at the
size of whole ones.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol

from magtiles_seg.serve.limits import MAX_HEAD_BYTES, head_too_large
from magtiles_seg.serve.problems import Problem

HEAD_S = 10.0
"""Longest time for a head to arrive, from its first byte or from a new connection on."""

BODY_S = 10.0
"""Longest time that a body is read, and thrown away, after its request was answered."""

STALL_S = 10.0
"""How long a client may take nothing of an answer."""

UNSENT_BYTES = 256_000_000
"""Most bytes of all answers that wait for slow clients; those that wait longest are given up."""

LINGER_S = 2.0
"""How long a refused client's bytes are thrown away, so that it gets to read why."""

if TYPE_CHECKING:
    _Protocol = H11Protocol  # the mixin uses what both protocols have
else:
    _Protocol = object


class Guard(_Protocol):
    """A mixin before one of uvicorn's protocols."""

    _timer: asyncio.TimerHandle | None = None
    _timed = ""
    _stall_timer: asyncio.TimerHandle | None = None
    _stalled_at = 0.0
    _unsent = 0
    _head_bytes = 0
    _refused = False

    def _waits_for(self) -> str:
        """Return `head`, `body` (whose request is answered), or nothing."""
        raise NotImplementedError

    def _count_head(self, data: bytes) -> None:
        """Note how many bytes of an open head have come."""
        raise NotImplementedError

    def _others_wait(self) -> bool:
        """Tell whether an answer to an earlier request of this connection is still to come."""
        return False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._time("head")

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the timers."""
        for timer in (self._timer, self._stall_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Pass on what came, as long as its head stays within the limits."""
        if self._refused:
            return
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        self._count_head(data)
        waits_for = self._waits_for()
        if waits_for == "head" and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(head_too_large())
        elif waits_for != self._timed:
            self._time(waits_for)

    def on_response_complete(self) -> None:
        """Go on to the next request; what is left of this one's body has so much time."""
        super().on_response_complete()
        if self._waits_for() == "body":
            self._time("body")

    def _time(self, waits_for: str) -> None:
        """Give what is waited for its time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = waits_for
        if waits_for:
            seconds = HEAD_S if waits_for == "head" else BODY_S
            self._timer = self.loop.call_later(seconds, self._time_is_over)

    def _time_is_over(self) -> None:
        if self._timed == "head" and self._head_bytes:
            self._refuse(Problem(408, f"the header fields took longer than {HEAD_S:g} s"))
        else:
            self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        """Answer in place of the application, and let the client read it."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started or not self.cycle.more_body or self._others_wait():
                self.transport.abort()  # the answer would come amid another one, or before it
                return
            self.cycle.disconnected = True  # what is refused is this request's body
            self.cycle.waiting_for_100_continue = False
            self.cycle.message_event.set()
        self._refused = True
        self._time("")
        self._unset_keepalive_if_required()
        response = problem.response()
        fields = [*response.raw_headers, (b"connection", b"close")]
        lines = b"".join(b"%b: %b\r\n" % field for field in dict(fields).items())
        phrase = HTTPStatus(problem.status).phrase.encode()
        status = b"HTTP/1.1 %d %b\r\n" % (problem.status, phrase)
        self.transport.write(status + lines + b"\r\n" + bytes(response.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._timer = self.loop.call_later(LINGER_S, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP as every other error."""
        self._refuse(Problem(400, msg))

    def pause_writing(self) -> None:
        """Begin to watch whether the client reads."""
        super().pause_writing()
        if self._stall_timer is None:
            self._unsent, self._stalled_at = 0, self.loop.time()
            self._look_at_unsent()
            self._make_room()

    def resume_writing(self) -> None:
        """Stop to watch."""
        super().resume_writing()
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None

    def _look_at_unsent(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        if unsent == self._unsent:
            self.transport.abort()
            return
        self._unsent = unsent
        self._stall_timer = self.loop.call_later(STALL_S, self._look_at_unsent)

    def _make_room(self) -> None:
        """Give up the connections that are stalled longest, beyond what all may hold."""
        stalled: list[Any] = [
            each for each in self.connections if getattr(each, "_stall_timer", None)
        ]
        stalled.sort(key=lambda each: each._stalled_at)
        unsent = sum(each.transport.get_write_buffer_size() for each in stalled)
        for each in stalled:
            if unsent <= UNSENT_BYTES:
                return
            unsent -= each.transport.get_write_buffer_size()
            each.transport.abort()


class GuardedH11(Guard, H11Protocol):
    """uvicorn's protocol in pure Python."""

    def __init__(self, config: Config, *args: Any, **options: Any) -> None:  # noqa: ANN401
        """Let this class's limit come before that of h11, which is told as a 400."""
        config.h11_max_incomplete_event_size = 16 * MAX_HEAD_BYTES
        super().__init__(config, *args, **options)

    def _waits_for(self) -> str:
        state = self.conn.their_state
        if state is h11.IDLE and (self.cycle is None or self.conn.trailing_data[0]):
            return "head"
        answered = self.cycle is not None and self.cycle.response_complete
        return "body" if state is h11.SEND_BODY and answered else ""

    def _count_head(self, data: bytes) -> None:  # noqa: ARG002
        open_head = self.conn.their_state is h11.IDLE
        self._head_bytes = len(self.conn.trailing_data[0]) if open_head else 0


try:
    from httptools import HttpParserUpgrade
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
except ImportError:
    PROTOCOL: type[asyncio.Protocol] = GuardedH11
else:
    _OFFER = (b"upgrade", b"http2-settings")

    class _Parser:
        """httptools' parser, to which an offer to change the protocol is as if it were not made.

        A server may ignore `Upgrade` (RFC 9110, 7.8), but httptools ends such a request with its
        head: clients that offer h2c, as Java's do by default, would lose what they send.
        """

        def __init__(self, protocol: HttpToolsProtocol) -> None:
            self._protocol, self._parser = protocol, protocol.parser

        def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - as the parser's
            return getattr(self._parser, name)

        def offers(self) -> bool:
            """Tell whether the request whose head is whole offers another protocol."""
            upgrade: bool = self._parser.should_upgrade()
            return upgrade and self._parser.get_method() != b"CONNECT"

        def feed_data(self, data: bytes) -> None:
            """Parse what came; a head with an offer once more, by a new parser, without it."""
            while data:
                try:
                    self._parser.feed_data(data)
                except HttpParserUpgrade as offer:
                    if not self.offers():
                        raise
                    head = self._head()
                    self._parser = type(self._parser)(self._protocol)
                    self._parser.feed_data(head)
                    data = data[offer.args[0] :]
                else:
                    return

        def _head(self) -> bytes:
            version = self._parser.get_http_version().encode()
            lines = [b"%b %b HTTP/%b" % (self._parser.get_method(), self._protocol.url, version)]
            for name, value in self._protocol.headers:
                if name == b"connection":
                    words = [word.strip() for word in value.split(b",")]
                    value = b", ".join(word for word in words if word.lower() not in _OFFER)
                if name not in _OFFER:
                    lines.append(b"%b: %b" % (name, value))
            return b"\r\n".join([*lines, b"", b""])

    class GuardedHttpTools(Guard, HttpToolsProtocol):  # type: ignore[misc]
        """uvicorn's protocol over httptools, which does not say how much of a head it holds."""

        parser: Any
        _head_open = _body_open = False
        _between = True  # the bytes that come now begin a head
        _begun = 0  # heads in them

        def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401
            """Ignore offers of other protocols."""
            super().__init__(*args, **options)
            self.parser = _Parser(self)

        def data_received(self, data: bytes) -> None:
            """Note whether a head begins with these bytes."""
            self._between = not (self._head_open or self._body_open)
            self._begun = 0
            super().data_received(data)

        def on_message_begin(self) -> None:
            """Note that a head begins."""
            super().on_message_begin()
            self._head_open, self._body_open = True, False
            self._begun += 1

        def on_headers_complete(self) -> None:
            """Note that it is whole."""
            if self.parser.offers():  # it comes once more
                return
            super().on_headers_complete()
            self._head_open, self._body_open = False, True

        def on_message_complete(self) -> None:
            """Note that the body is whole."""
            if self.parser.offers():
                return
            super().on_message_complete()
            self._body_open = False

        def _others_wait(self) -> bool:
            return bool(self.pipeline)

        def _waits_for(self) -> str:
            blank = self._between and self._begun == 0  # they end the wait for the next request
            if self._head_open or self.cycle is None or (blank and self.cycle.response_complete):
                return "head"
            return "body" if self._body_open and self.cycle.response_complete else ""

        def _count_head(self, data: bytes) -> None:
            whole = self._begun == 0 or (self._begun == 1 and self._between)
            before = self._head_bytes if self._begun == 0 else 0
            self._head_bytes = before + len(data) if self._head_open and whole else 0

    PROTOCOL = GuardedHttpTools
