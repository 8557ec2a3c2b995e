"""MQTT: each finding a JSON message of QoS 1 on one topic."""

from __future__ import annotations

import json
import secrets
import threading
import time
from typing import Any

from magtiles_seg.errors import BackendUnavailableError
from magtiles_seg.linescan.messages import Message

try:
    import paho.mqtt.client as mqtt
    from paho.mqtt.enums import CallbackAPIVersion
except ImportError as error:
    raise BackendUnavailableError(
        f"mqtt:// needs paho-mqtt ({error}): pip install 'magtiles-seg[plant]'"
    ) from error

_SLICE_S = 0.1


class MqttDoor:
    """Publishes to a broker (MQTT 3.1.1).

    One message is under way at a time: the next is published when the broker has confirmed it. So
    the broker has every finding at least once, in order, and a second copy only where the
    connection broke before its confirmation came: it has the same `id`. `TOPIC/status` holds,
    retained, `{"state": "online"}`, or `"offline"` by the broker's last will.
    """

    def __init__(
        self,
        host: str,
        topic: str,
        *,
        port: int = 1883,
        username: str | None = None,
        password: str | None = None,
        tls: bool = False,
        ca: str | None = None,
        timeout_s: float = 5.0,
    ) -> None:
        """Prepare; nothing is connected yet.

        Args:
            host: Of the broker.
            topic: Of the findings.
            port: Of the broker.
            username: If it asks for one.
            password: If it asks for one.
            tls: Whether to connect over TLS.
            ca: File of the certificates to trust; None: the system's.
            timeout_s: The longest wait for an answer.
        """
        self._host, self._port, self._topic = host, port, topic
        self._username, self._password = username, password
        self._tls, self._ca, self._timeout_s = tls, ca, timeout_s
        # The same each time: by it the broker ends a broken connection that it still holds, whose
        # last will would else say "offline" after the new one has said "online".
        self._client_id = secrets.token_hex(11)  # MQTT 3.1.1 brokers take 23 characters
        self._client: mqtt.Client | None = None

    def connect(self) -> None:
        """Connect, and say so on the status topic.

        Raises:
            OSError: The broker is not there, or refuses.
        """
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            self._client_id,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,  # the outbox does it
        )
        client.connect_timeout = self._timeout_s
        client.username_pw_set(self._username, self._password)
        if self._tls:
            client.tls_set(ca_certs=self._ca)
        client.will_set(*self._status("offline"), qos=1, retain=True)
        answered, answer = threading.Event(), [""]

        def on_connect(*arguments: Any) -> None:  # noqa: ANN401 - paho's own
            answer[0] = str(arguments[3]) if arguments[3].is_failure else ""
            answered.set()

        client.on_connect = on_connect
        self._client = client
        client.connect(self._host, self._port, keepalive=10)
        client.loop_start()
        if not answered.wait(self._timeout_s):
            raise TimeoutError(f"the broker did not answer within {self._timeout_s:g} s")
        if answer[0]:
            raise ConnectionRefusedError(f"the broker refused: {answer[0]}")
        self._publish(*self._status("online"), retain=True)

    def check(self) -> None:
        """Raise ConnectionError if the broker is gone."""
        if self._client is None or not self._client.is_connected():
            raise ConnectionError("the connection to the broker is broken")

    def send(self, message: Message) -> None:
        """Publish, and wait for the broker's confirmation.

        Raises:
            OSError: The connection broke, or no confirmation came.
        """
        self._publish(self._topic, message.to_json(), retain=False)

    def close(self) -> None:
        """Say that nobody inspects any more, if the broker is there, and disconnect."""
        client, self._client = self._client, None
        if client is None:
            return
        if client.is_connected():
            said = client.publish(*self._status("offline"), qos=1, retain=True)
            said.wait_for_publish(_SLICE_S)
        client.disconnect()
        client.loop_stop()

    def _status(self, state: str) -> tuple[str, str]:
        return f"{self._topic}/status", json.dumps({"state": state})

    def _publish(self, topic: str, text: str, *, retain: bool) -> None:
        self.check()
        assert self._client is not None
        sent = self._client.publish(topic, text, qos=1, retain=retain)
        until_s = time.monotonic() + self._timeout_s
        while not sent.is_published():
            sent.wait_for_publish(_SLICE_S)
            self.check()
            if time.monotonic() > until_s:
                raise TimeoutError(f"the broker did not confirm within {self._timeout_s:g} s")
