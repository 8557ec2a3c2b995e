"""OPC UA: a server whose clients get each finding as an event, and can ask for what they missed."""

from __future__ import annotations

import logging
import socket
from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING, Any

from magtiles_seg.decision import count
from magtiles_seg.errors import BackendUnavailableError
from magtiles_seg.linescan.defects import WebDefect
from magtiles_seg.linescan.messages import Message

try:
    from asyncua import ua
    from asyncua.common.methods import uamethod
    from asyncua.server.server import Server
    from asyncua.sync import ThreadLoop
    from asyncua.ua.object_ids import ObjectIds
except ImportError as error:
    raise BackendUnavailableError(
        f"opcua:// needs asyncua ({error}): pip install 'magtiles-seg[plant]'"
    ) from error

if TYPE_CHECKING:
    from asyncua.common.node import Node

NAMESPACE = "urn:magtiles-seg:stream"

FIELDS = {
    "ResultId": ua.VariantType.String,
    "JobId": ua.VariantType.String,
    "CreationTime": ua.VariantType.DateTime,
    "IsPartial": ua.VariantType.Boolean,
    "ResultState": ua.VariantType.Int32,
    "ResultContent": ua.VariantType.String,
    "Label": ua.VariantType.String,
    "Score": ua.VariantType.Double,
    "FirstLine": ua.VariantType.Int64,
    "LastLine": ua.VariantType.Int64,
    "X0": ua.VariantType.Int32,
    "X1": ua.VariantType.Int32,
    "AreaPx": ua.VariantType.Int64,
}
"""Fields of an event and of the latest result.

The first six carry the names of OPC 40100-1 (Machine Vision): `ResultId` the finding's id, `JobId`
the run, `IsPartial` whether the defect may be larger than what was seen, `ResultState` 1
(completed) for a defect and 4 (failed) for uninspected lines, `ResultContent` everything as JSON.
`LastLine` is -1 where the end is unknown, and `X1` -1 where lines are uninspected as far as the
web's border.
"""

_COMPLETED, _FAILED = 1, 4
logging.getLogger("asyncua").addHandler(logging.NullHandler())  # else its warnings go to stderr
_START_S = 60.0


class OpcUaDoor:
    """A server with an object `VisionSystem`, from which every client may read.

    Each finding is an event of type `ResultReadyEventType` and the new values below
    `ResultManagement/LatestResult`. A client that was away calls
    `ResultManagement.GetResultsAfter(ResultId)` with the last id that it has: it gets, in order,
    what is kept behind it as JSON, and how many results are no longer kept. Clients need no name,
    cannot write, and nothing is encrypted.
    """

    def __init__(
        self, host: str, *, port: int = 4840, path: str = "magtiles-seg", kept: int = 10_000
    ) -> None:
        """Prepare; nothing is started yet.

        Args:
            host: Address to listen at; `0.0.0.0`: at all.
            port: Port to listen at.
            path: Of the endpoint.
            kept: Latest results that clients may ask for; at least 1.

        Raises:
            ConfigError: `kept` is out of its range.
        """
        count("kept", kept)
        self._listen, is_ipv6 = (host, port), ":" in host
        self._family = socket.AF_INET6 if is_ipv6 else socket.AF_INET
        self._endpoint = f"opc.tcp://{f'[{host}]' if is_ipv6 else host}:{port}/{path}"
        self._kept: deque[tuple[str, str]] = deque(maxlen=kept)  # id and JSON
        self._forgotten = 0
        self._loop: ThreadLoop | None = None
        self._server: Server | None = None

    def connect(self) -> None:
        """Start the server.

        Raises:
            OSError: The port is taken or may not be used.
        """
        with socket.create_server(self._listen, family=self._family):  # before long preparation
            pass
        self._loop = ThreadLoop(timeout=_START_S)
        self._loop.daemon = True
        self._loop.start()
        self._loop.post(self._start())

    def check(self) -> None:
        """Do nothing: the server is ours."""

    def send(self, message: Message) -> None:
        """Keep a result, show it as the latest, and send the event."""
        if self._loop is None:
            raise ConnectionError("the OPC UA server is not started")
        self._loop.post(self._show(message))

    def close(self) -> None:
        """Stop the server."""
        loop, self._loop = self._loop, None
        if loop is None:
            return
        server, self._server = self._server, None
        try:
            if server is not None:
                loop.post(server.stop())
        finally:
            loop.stop()

    async def _start(self) -> None:
        server = Server()
        await server.init()
        server.set_endpoint(self._endpoint)
        server.set_server_name("magtiles-seg stream")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        server.allow_remote_admin(False)
        space = await server.register_namespace(NAMESPACE)
        system = await server.nodes.objects.add_object(space, "VisionSystem")
        management = await system.add_object(space, "ResultManagement")
        latest = await management.add_object(space, "LatestResult")
        self._values = {
            name: await latest.add_variable(space, name, _EMPTY[kind], kind)
            for name, kind in FIELDS.items()
        }
        text, whole = ua.VariantType.String, ua.VariantType.UInt64
        await management.add_method(
            space, "GetResultsAfter", uamethod(self._results_after), [text], [text, whole]
        )
        event = await server.create_custom_event_type(
            space, "ResultReadyEventType", ObjectIds.BaseEventType, list(FIELDS.items())
        )
        self._events = await server.get_event_generator(event, system.nodeid)
        await server.start()
        self._server = server

    async def _show(self, message: Message) -> None:
        fields = _fields(message)
        if not any(known == message.id for known, _ in self._kept):
            self._forgotten += len(self._kept) == self._kept.maxlen
            self._kept.append((message.id, message.to_json()))
        for name, value in fields.items():
            await self._values[name].write_value(ua.Variant(value, FIELDS[name]))
            setattr(self._events.event, name, value)
        await self._events.trigger(message=f"{message.kind} {message.id}")

    def _results_after(self, _parent: Node, result_id: str) -> tuple[Any, int]:
        """Answer with the kept results behind one, and how many are kept no longer."""
        ids = [known for known, _ in self._kept]
        start = ids.index(result_id) + 1 if result_id in ids else 0
        texts = [text for _, text in list(self._kept)[start:]]
        return texts, self._forgotten if start == 0 else 0


_EMPTY: dict[ua.VariantType, Any] = {
    ua.VariantType.String: "",
    ua.VariantType.DateTime: datetime(1970, 1, 1),
    ua.VariantType.Boolean: False,
    ua.VariantType.Int32: 0,
    ua.VariantType.Int64: 0,
    ua.VariantType.Double: 0.0,
}


def _fields(message: Message) -> dict[str, Any]:
    """Return the values of `FIELDS`."""
    found = message.found
    values: dict[str, Any] = {
        "ResultId": message.id,
        "JobId": message.run,
        "CreationTime": datetime.fromisoformat(message.at).replace(tzinfo=None),
        "ResultContent": message.to_json(),
        "FirstLine": found.first_line,
    }
    if isinstance(found, WebDefect):
        x0, _, x1, _ = found.bbox_xyxy_px
        return values | {
            "IsPartial": not found.complete,
            "ResultState": _COMPLETED,
            "Label": found.label,
            "Score": found.score,
            "LastLine": found.last_line,
            "X0": x0,
            "X1": x1,
            "AreaPx": found.area_px,
        }
    last_line = -1 if found.end_line is None else found.end_line - 1
    nothing = {"Label": "", "Score": 0.0, "AreaPx": 0, "IsPartial": True, "ResultState": _FAILED}
    x1 = -1 if found.x1_px is None else found.x1_px
    return values | nothing | {"LastLine": last_line, "X0": found.x0_px, "X1": x1}
