"""Doors against their real servers on loopback: in order, once, through a server that goes."""

from __future__ import annotations

import gc
import itertools
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import paho.mqtt.client as mqtt
import plant
import pytest
from asyncua import ua
from asyncua.sync import Client
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from paho.mqtt.enums import CallbackAPIVersion
from plant import free_port, until

from magtiles_seg.errors import ConfigError
from magtiles_seg.linescan.defects import Uninspected, WebDefect
from magtiles_seg.linescan.messages import Message
from magtiles_seg.linescan.plant import outbox as outboxes
from magtiles_seg.linescan.plant.address import open_door
from magtiles_seg.linescan.plant.modbus import REGISTERS, ModbusDoor
from magtiles_seg.linescan.plant.mqtt import MqttDoor
from magtiles_seg.linescan.plant.opcua import FIELDS, NAMESPACE, OpcUaDoor
from magtiles_seg.linescan.plant.outbox import Door, Limits, Outbox

GAP = Uninspected(first_line=70_000, end_line=70_010, reason="lost")
ONE_CAMERA = Uninspected(first_line=3, end_line=5, reason="lost", x0_px=20, x1_px=40)
RESTART = Uninspected(first_line=9, end_line=None, reason="restarted")


def defect(line: int, *, score: float = 0.75, area_px: int = 70_000) -> WebDefect:
    return WebDefect(
        label="crack",
        score=score,
        area_px=area_px,
        bbox_xyxy_px=(5, line, 9, line + 6),
        centroid_xy_px=(6.5, 10.0),
        length_px=6.0,
        width_px=4.0,
        first_line=line,
        last_line=line + 5,
    )


class Subscriber:
    """A client with a session that outlives its connection; it gets what it missed."""

    def __init__(self, port: int) -> None:
        self.messages: list[dict[str, Any]] = []
        self.states: list[str] = []
        self._port = port

    def connect(self) -> None:
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, "historian", False)
        self._client.on_message = self._take
        self._client.on_subscribe = lambda *_: self.states.append("subscribed")
        until(lambda: plant.listens(self._port))
        self._client.connect("127.0.0.1", self._port)
        self._client.subscribe("line/1/#", qos=1)
        before = self.states.count("subscribed")
        self._client.loop_start()
        until(lambda: self.states.count("subscribed") > before)

    def leave(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _take(self, _client: object, _data: object, message: mqtt.MQTTMessage) -> None:
        content = json.loads(message.payload)
        if message.topic.endswith("/status"):
            self.states.append(content["state"])
        else:
            self.messages.append(content)


BROKERS = (
    pytest.param("mosquitto", marks=pytest.mark.skipif(not plant.MOSQUITTO, reason="no mosquitto")),
    pytest.param(  # leaves its writers to the garbage collector
        "amqtt",
        marks=[
            pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
            pytest.mark.filterwarnings("ignore::DeprecationWarning"),
        ],
    ),
)


@pytest.fixture(params=BROKERS)
def broker(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[plant.Mosquitto | plant.Amqtt]:
    if request.param == "mosquitto":
        mosquitto = plant.Mosquitto(free_port(), tmp_path)
        yield mosquitto
        mosquitto.stop()
    else:
        pytest.importorskip("amqtt")
        amqtt = plant.Amqtt(free_port())
        yield amqtt
        amqtt.stop()
        amqtt.leave()
        gc.collect()


def outbox(door: Door, limits: Limits | None = None) -> Outbox:
    return Outbox(door, name="door", run="a", limits=limits)


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    return [int(one["id"].rpartition("-")[2]) for one in messages]


def test_mqtt_broker_that_goes_and_comes_gets_everything_once_and_in_order(
    broker: plant.Mosquitto | plant.Amqtt,
) -> None:
    subscriber = Subscriber(broker.port)
    subscriber.connect()
    box = outbox(MqttDoor("127.0.0.1", "line/1", port=broker.port))
    for line in range(20):
        box.write(defect(line))
    until(lambda: len(subscriber.messages) == 20)
    subscriber.leave()
    broker.stop()
    for line in range(20, 40):
        box.write(defect(line))
    until(lambda: box.state.error is not None)
    assert box.state.waiting == 20
    broker.start()
    subscriber.connect()
    until(lambda: box.state.delivered == 40)
    box.close()
    subscriber.leave()
    assert (box.state.waiting, box.state.dropped) == (0, 0)
    assert numbers(subscriber.messages) == sorted(set(numbers(subscriber.messages)))
    assert numbers(subscriber.messages)[:20] == list(range(1, 21))
    assert subscriber.messages[0]["label"] == "crack"


@pytest.mark.skipif(not plant.MOSQUITTO, reason="needs mosquitto: its sessions outlive a broker")
def test_mqtt_status_is_retained_and_says_when_the_inspection_has_gone(tmp_path: Path) -> None:
    server = plant.Mosquitto(free_port(), tmp_path)
    try:
        box = outbox(MqttDoor("127.0.0.1", "line/1", port=server.port))
        box.write(defect(1))
        until(lambda: box.state.delivered == 1)
        subscriber = Subscriber(server.port)
        subscriber.connect()
        until(lambda: "online" in subscriber.states)
        box.close()
        until(lambda: subscriber.states[-1] == "offline")
        subscriber.leave()
    finally:
        server.stop()


def test_broker_that_accepts_and_never_answers_is_an_alarm_not_a_stop() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        box = outbox(MqttDoor("127.0.0.1", "t", port=port, timeout_s=0.2), Limits(patience_s=0.3))
        began_s = time.monotonic()
        box.write(defect(1))
        assert time.monotonic() - began_s < 1
        until(lambda: box.state.error is not None)
        assert "did not answer within 0.2 s" in str(box.state.error)
        with pytest.raises(OSError, match="1 findings were not delivered to door"):
            box.close()


def test_mqtt_connections_of_a_door_have_one_name_so_that_a_broker_ends_the_broken_one() -> None:
    heads = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        door = MqttDoor("127.0.0.1", "t", port=port, timeout_s=0.2)
        box = outbox(door, Limits(patience_s=0))
        for _ in range(2):
            connection, _ = server.accept()
            with connection:
                heads.append(connection.recv(4096))
        box.close()
    names = {head[14 : 14 + int.from_bytes(head[12:14])] for head in heads}
    assert len(names) == 1
    assert 1 <= len(names.pop()) <= 23  # what MQTT 3.1.1 asks brokers to take


def test_mqtt_last_will_says_offline_and_is_retained() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        door = MqttDoor("127.0.0.1", "line", port=server.getsockname()[1], timeout_s=0.2)
        box = outbox(door, Limits(patience_s=0))
        connection, _ = server.accept()
        with connection:
            head = connection.recv(4096)
        box.close()
    assert head[9] & 0b0011_1100 == 0b0010_1100  # will, QoS 1, retained
    assert b'line/status\x00\x14{"state": "offline"}' in head


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Write a certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "broker")])
    since = datetime.now(UTC) - timedelta(days=1)
    address = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(since)
        .not_valid_after(since + timedelta(days=2))
        .add_extension(address, critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "broker.pem", folder / "broker.key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    plain = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    files[1].write_bytes(plain)
    return files


# paho leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mqtts_trusts_the_certificates_of_ca_and_no_others(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    heads: list[bytes] = []

    def serve(server: socket.socket) -> None:
        for _ in range(2):
            connection, _ = server.accept()
            with connection, suppress(OSError), context.wrap_socket(connection, True) as secret:
                heads.append(secret.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        address = f"mqtts://127.0.0.1:{server.getsockname()[1]}/line?patience-s=0"
        stranger = open_door(address)
        until(lambda: stranger.state.error is not None)
        assert "certificate verify failed" in str(stranger.state.error)
        with suppress(OSError):
            stranger.close()
        trusting = open_door(f"{address}&ca={certificate}")
        until(lambda: heads)
        trusting.close()
    assert heads[0][4:8] == b"MQTT"


def test_full_outbox_drops_the_oldest_and_says_so() -> None:
    port = free_port()
    box = outbox(ModbusDoor("127.0.0.1", port=port, hold_s=0), Limits(most=3))
    until(lambda: box.state.error is not None)
    for line in range(10):
        box.write(defect(line))
    until(lambda: box.state.waiting + box.state.dropped == 10)
    assert box.state.waiting <= 4
    dropped = box.state.dropped
    server = plant.Plc(port)
    until(lambda: box.state.waiting == 0)
    box.close()
    server.stop()
    server.leave()
    seen = [values[0] for values in server.seen[1:]]
    assert seen[-3:] == [8, 9, 10]
    assert seen == sorted(seen)
    assert (len(seen), box.state.dropped) == (10 - dropped, dropped)
    assert "dropped" in str(box.state.alarm)


def test_outbox_that_is_closed_says_what_kept_findings_back_and_takes_no_more(
    plc: plant.Plc,
) -> None:
    box = outbox(ModbusDoor("127.0.0.1", port=plc.port, hold_s=0.5), Limits(patience_s=0.1))
    for line in range(5):
        box.write(defect(line))
    with pytest.raises(OSError, match=r"to door: the receiver took longer than 0\.1 s"):
        box.close()
    with pytest.raises(OSError, match="door is closed: findings that come now are not delivered"):
        box.write(defect(5))
    assert box.state.waiting == 0


def test_finding_that_is_too_old_is_not_sent_to_a_gate() -> None:
    port = free_port()
    box = outbox(ModbusDoor("127.0.0.1", port=port, hold_s=0), Limits(expires_s=0.2))
    box.write(defect(1))
    until(lambda: box.state.dropped == 1)
    server = plant.Plc(port)
    until(lambda: box.state.error is None)
    box.write(defect(2))
    until(lambda: box.state.delivered == 1)
    box.close()
    server.stop()
    server.leave()
    assert [values[0] for values in server.seen] == [0, 2]


@pytest.fixture
def plc() -> Iterator[plant.Plc]:
    server = plant.Plc(free_port(), acknowledge=50)
    yield server
    server.stop()
    server.leave()


def test_modbus_registers_hold_the_finding_and_wait_for_the_acknowledgement(
    plc: plant.Plc,
) -> None:
    box = outbox(ModbusDoor("127.0.0.1", port=plc.port, register=10, ack=50))
    box.write(defect(70_000))
    box.write(GAP)
    box.write(ONE_CAMERA)
    box.write(RESTART)
    until(lambda: box.state.delivered == 4)
    box.close()
    assert plc.seen[0] == [0] * len(REGISTERS)
    first, second, third, fourth = (
        dict(zip(REGISTERS, values, strict=True)) for values in plc.seen[1:]
    )
    assert first["age_ms"] < 30_000
    del first["age_ms"], second["age_ms"]
    assert first == {
        "sequence": 1, "kind": 1, "class": 3, "score_permille": 750, "first_line_high": 1,
        "first_line_low": 4464, "last_line_high": 1, "last_line_low": 4469, "x0_px": 5, "x1_px": 9,
        "area_px_high": 1, "area_px_low": 4464,
    }  # fmt: skip
    assert (second["sequence"], second["kind"], second["last_line_low"]) == (2, 2, 4473)
    assert [(one["x0_px"], one["x1_px"]) for one in (second, third)] == [(0, 0xFFFF), (20, 40)]
    assert (fourth["kind"], fourth["first_line_low"], fourth["last_line_low"]) == (3, 9, 9)


def test_modbus_plc_that_goes_and_comes_gets_each_sequence_number_in_order(plc: plant.Plc) -> None:
    box = outbox(ModbusDoor("127.0.0.1", port=plc.port, ack=50))
    for line in range(10):
        box.write(defect(line))
    until(lambda: box.state.delivered == 10)
    plc.stop()
    for line in range(10, 20):
        box.write(defect(line))
    until(lambda: box.state.error is not None)
    plc.start()
    until(lambda: box.state.delivered == 20)
    box.close()
    seen = [values[0] for values in plc.seen]
    assert list(dict.fromkeys(seen)) == list(range(21))
    assert seen == sorted(seen)  # one that is written again follows itself


def test_reconnecting_takes_longer_each_time_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outboxes, "_FIRST_DELAY_S", 0.01)
    monkeypatch.setattr(outboxes, "_LONGEST_DELAY_S", 0.04)
    tries: list[float] = []

    class Gone:
        def connect(self) -> None:
            tries.append(time.monotonic())
            raise OSError("not there")

        check = send = close = None

    box = Outbox(Gone(), name="door", limits=Limits(patience_s=0))  # type: ignore[arg-type]
    until(lambda: len(tries) >= 6)
    box.close()
    waits_s = [later - earlier for earlier, later in itertools.pairwise(tries)]
    for wait_s, least_s in zip(waits_s, (0.01, 0.02, 0.04, 0.04, 0.04), strict=False):
        assert wait_s >= least_s


def test_slight_defects_are_passed_over_and_lines_nobody_saw_are_not(plc: plant.Plc) -> None:
    limits = Limits(min_score=0.5, min_area_px=10)
    box = outbox(ModbusDoor("127.0.0.1", port=plc.port, hold_s=0), limits)
    slight = defect(1, score=0.49), defect(2, area_px=9)
    for found in (*slight, defect(3, score=0.5, area_px=10), GAP):
        box.write(found)
    until(lambda: box.state.delivered == 2)
    box.close()
    assert [values[0] for values in plc.seen] == [0, 3, 4]


class Requests:
    """Stands in for the connection to a PLC: keeps what is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, list[int], int]] = []

    def write_registers(self, address: int, values: list[int], *, device_id: int) -> Any:  # noqa: ANN401
        self.asked.append((address, values, device_id))
        return SimpleNamespace(isError=lambda: False)


@pytest.mark.parametrize(
    ("number", "sequence"), [(1, 1), (65_535, 65_535), (65_536, 1), (131_071, 1)]
)
def test_modbus_numbers_go_from_65535_to_1_and_age_stays_at_its_most(
    number: int, sequence: int
) -> None:
    door = ModbusDoor("127.0.0.1", unit=17, register=5, hold_s=0)
    requests = door._client = Requests()  # type: ignore[assignment]
    long_ago_s = time.perf_counter() - 70
    door.send(Message(run="a", number=number, at="", found=defect(1), arrived_s=long_ago_s))
    ((address, values, unit),) = requests.asked
    assert (address, unit) == (5, 17)
    assert (values[0], values[-1]) == (sequence, 0xFFFF)


def test_modbus_plc_that_does_not_acknowledge_is_an_alarm() -> None:
    server = plant.Plc(free_port())
    door = ModbusDoor("127.0.0.1", port=server.port, ack=50, register=0, timeout_s=0.2)
    box = outbox(door, Limits(patience_s=0.2))
    box.write(defect(1))
    until(lambda: box.state.error is None and len(server.seen) > 1)
    until(lambda: box.state.error is not None)
    assert "did not acknowledge 1 in register 50 within 0.2 s" in str(box.state.error)
    with pytest.raises(OSError, match="1 findings were not delivered"):
        box.close()
    server.stop()
    server.leave()


def test_modbus_coil_is_pulsed_for_a_defect_and_for_lines_nobody_saw(plc: plant.Plc) -> None:
    box = outbox(ModbusDoor("127.0.0.1", port=plc.port, coil=3, hold_s=0.01), Limits(min_score=0.5))
    for found in (defect(1), defect(2, score=0.4), GAP):
        box.write(found)
    until(lambda: box.state.delivered == 2)
    box.close()
    assert plc.coil == [False, True, False, True, False]
    assert plc.seen == []


class Events:
    """Takes the events of a server."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def event_notification(self, event: Any) -> None:  # noqa: ANN401 - fields by name
        self.events.append(event)


@pytest.fixture
def door() -> OpcUaDoor:
    return OpcUaDoor("127.0.0.1", port=free_port(), kept=30)


def test_opcua_server_listens_at_an_ipv6_address() -> None:
    box = outbox(OpcUaDoor("::1", port=free_port()))
    box.write(defect(0))
    until(lambda: box.state.delivered == 1)
    box.close()


def test_opcua_client_gets_each_finding_as_an_event_and_later_what_it_missed(
    door: OpcUaDoor,
) -> None:
    box = outbox(door)
    box.write(defect(0))
    until(lambda: box.state.delivered == 1)
    handler = Events()
    with Client(door._endpoint) as client:
        space = client.get_namespace_index(NAMESPACE)
        system = client.nodes.objects.get_child([f"{space}:VisionSystem"])
        kind = client.nodes.base_event_type.get_child([f"{space}:ResultReadyEventType"])
        subscription = client.create_subscription(5, handler)
        subscription.subscribe_events(system, kind)
        for line in range(1, 20):
            box.write(defect(line))
        box.write(GAP)
        until(lambda: len(handler.events) == 20)
        latest = system.get_child([f"{space}:ResultManagement", f"{space}:LatestResult"])
        values = {name: latest.get_child([f"{space}:{name}"]).read_value() for name in FIELDS}
        with pytest.raises(Exception, match=r"BadUserAccessDenied|BadNotWritable"):
            latest.get_child([f"{space}:Label"]).write_value("sound")
    assert [event.FirstLine for event in handler.events] == [*range(1, 20), 70_000]
    assert (handler.events[0].Label, handler.events[0].ResultState) == ("crack", 1)
    assert (values["ResultId"], values["ResultState"]) == ("a-00000021", 4)
    assert (values["X0"], values["X1"]) == (0, -1)
    assert json.loads(values["ResultContent"])["reason"] == "lost"
    for line in range(20, 50):
        box.write(defect(line))
    until(lambda: box.state.delivered == 51)
    with Client(door._endpoint) as client:
        space = client.get_namespace_index(NAMESPACE)
        path = [f"{space}:VisionSystem", f"{space}:ResultManagement"]
        management = client.nodes.objects.get_child(path)
        ask = f"{space}:GetResultsAfter"
        missed, lost = management.call_method(ask, "a-00000041")
        everything, forgotten = management.call_method(ask, "")
    assert (numbers([json.loads(one) for one in missed]), lost) == (list(range(42, 52)), 0)
    assert (len(everything), forgotten) == (30, 21)
    box.close()


def test_opcua_client_can_change_nothing() -> None:
    port = free_port()
    with closing(OpcUaDoor("127.0.0.1", port=port)) as door:
        door.connect()
        with Client(f"opc.tcp://127.0.0.1:{port}/magtiles-seg") as client:
            space = client.get_namespace_index(NAMESPACE)
            path = [f"{space}:VisionSystem", f"{space}:ResultManagement"]
            management = client.nodes.objects.get_child(path)
            score = management.get_child([f"{space}:LatestResult", f"{space}:Score"])
            for change in (
                lambda: score.write_value(1.0),
                lambda: management.add_object(space, "mine"),
                lambda: client.delete_nodes([management]),
            ):
                with pytest.raises(ua.uaerrors.BadUserAccessDenied):
                    change()  # type: ignore[no-untyped-call]


def test_opcua_port_that_is_taken_is_an_alarm_and_the_server_starts_when_it_is_free(
    door: OpcUaDoor,
) -> None:
    port = int(door._endpoint.split(":")[2].split("/")[0])
    with closing(socket.create_server(("127.0.0.1", port))):
        box = outbox(door)
        box.write(defect(1))
        until(lambda: box.state.error is not None)
    until(lambda: box.state.delivered == 1)
    box.close()


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://host/x", "is no address of a receiver; expected mqtt://"),
        ("mqtt://host", "needs a topic"),
        ("mqtt://host/a/#", "needs a topic without"),
        ("mqtt://host:port/a", "is no address"),
        ("modbus://host?registr=1", "unknown option 'registr'; did you mean 'register'"),
        ("modbus://host?register=x", "register is 'x'; expected a number"),
        ("modbus://host?coil=70000", "coil is 70000; expected 0..65535"),
        ("modbus://host?coil=1&ack=1", "ack needs the registers"),
        ("modbus://host?most=0", "most is 0"),
        ("modbus://host?min-score=2", "min_score is 2.0"),
        ("modbus://host?expires-s=-1", "expires_s is -1.0"),
        ("modbus://host?most=5&most=6", "most is given twice"),
        ("modbus://host?unit=300", "unit is 300; expected 0..255"),
        ("modbus://host?register=65524", "expected at most 65523, as 13 registers"),
        ("modbus://host?register=100&ack=112", "ack is 112, one of the 13 registers from 100 on"),
        ("modbus://host?register=100&ack=100", "ack is 100, one of the 13 registers from 100 on"),
        ("modbus://host/100", "after the host, and no more"),
        ("modbus://host?coil=1#2", "after the host, and no more"),
        ("modbus://me:hush@host", "asks for no name and no password"),
        ("opcua://me:hush@host", "asks for no name and no password"),
        ("opcua://host?kept=0", "kept is 0"),
        ("opcua://host?kept=-1", "kept is -1"),
        ("mqtt://host:0/a", "port is 0; expected 1..65535"),
        ("mqtt://host/a%00b", "expected a topic of at most 65,528 bytes"),
        (f"mqtt://host/{65_529 * 't'}", "expected a topic of at most 65,528 bytes"),
    ],
)
def test_address_that_is_not_understood_is_config_error(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_door(address)


@pytest.mark.parametrize(("register", "ack"), [(0, 13), (100, 99), (65_523, 0)])
def test_registers_at_the_edge_of_their_ranges_are_taken(register: int, ack: int) -> None:
    ModbusDoor("host", register=register, ack=ack)


def test_file_of_an_address_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ca: there is no file"):
        open_door(f"mqtts://host/a?ca={tmp_path / 'none.pem'}")
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"password-file: .*secret is no text in UTF-8"):
        open_door(f"mqtt://host/a?password-file={secret}")


def test_address_gives_a_door_whose_name_holds_no_password(plc: plant.Plc, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    box = open_door(f"mqtt://me:hush@127.0.0.1:{free_port()}/a/b?password-file={secret}")
    assert "hush" not in box.state.name
    box.close()
    other = open_door(f"modbus://127.0.0.1:{plc.port}?register=2&ack=50&min-area-px=5")
    other.write(defect(3))
    until(lambda: other.state.delivered == 1)
    other.close()
    assert other.state.latency_p99_ms is not None
