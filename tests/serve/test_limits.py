from __future__ import annotations

import asyncio
import time

import pytest

from magtiles_seg.serve.limits import (
    Expired,
    Gate,
    Place,
    Refused,
    check_format,
    format_of,
)
from magtiles_seg.serve.problems import Problem


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x89PNG\r\n\x1a\nrest", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"RIFF\0\0\0\0WEBP", "WEBP"),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"MM\0*", "TIFF"),
        (b"II+\0", "TIFF"),
        (b"MM\0+", "TIFF"),
        (b"%PDF", None),
        (b"", None),
    ],
)
def test_format_of_goes_by_the_first_bytes(data: bytes, name: str | None) -> None:
    assert format_of(data) == name


def test_check_format_outside_the_allowed_is_415_and_empty_400() -> None:
    with pytest.raises(Problem, match="none of PNG") as caught:
        check_format(b"\xff\xd8\xff", frozenset({"PNG"}))
    assert caught.value.status == 415
    with pytest.raises(Problem, match="empty") as caught:
        check_format(b"", frozenset({"PNG"}))
    assert caught.value.status == 400


def test_gate_full_refuses_with_retry_after_and_lets_in_again() -> None:
    gate = Gate(1)
    with gate.entered():
        with pytest.raises(Problem, match="try again in") as caught, gate.entered():
            pass
        assert caught.value.status == 503
        assert int(caught.value.headers["Retry-After"]) >= 1
    with gate.entered():
        assert gate.inside == 1
    assert (gate.inside, gate.accepted, gate.answered) == (0, 2, 2)


def test_gate_is_left_by_errors_too() -> None:
    gate = Gate(1)
    for _ in range(3):
        with pytest.raises(ValueError, match="broken"), gate.entered():
            raise ValueError("broken")
    assert gate.inside == 0


def busy_gate(**options: float) -> tuple[Gate, Place]:
    """Return a gate whose only stream takes 1 s a megapixel, and a request of 4 of them inside."""
    gate = Gate(100, streams=1, timeout_s=20, stop_s=8, **options)  # type: ignore[arg-type]
    gate.measured(1_000_000, 1.0)
    entered = gate.entered()
    place = entered.__enter__()
    gate.kept = entered  # type: ignore[attr-defined]  # left when collected
    gate.admit(place, [4_000_000])
    return gate, place


def test_gate_refuses_what_would_come_too_late_and_lets_in_what_would_not() -> None:
    gate, first = busy_gate()
    assert gate.wait_s == pytest.approx(4.0)
    with gate.entered() as second, pytest.raises(Refused, match="would take 18 s") as caught:
        gate.admit(second, [14_000_000])  # 18 s are more than 0.8 times 20 s
    assert int(caught.value.headers["Retry-After"]) >= 1
    with gate.entered() as second:
        gate.admit(second, [10_000_000])  # two at work keep the model busy, whatever the shutdown
        with pytest.raises(Refused), gate.entered():
            pass  # a third one must fit into it
    gate.computed(first)
    with gate.entered() as alone:
        gate.admit(alone, [30_000_000])  # whoever is alone is always tried


def test_gate_refused_after_the_upload_is_not_counted_as_accepted() -> None:
    gate, _ = busy_gate()
    with pytest.raises(Refused), gate.entered() as place:
        gate.admit(place, [30_000_000])
    assert (gate.accepted, gate.answered, gate.refused, gate.inside) == (1, 0, 1, 1)


def test_gate_counts_every_accepted_request_once_and_truly() -> None:
    told: list[str] = []
    gate = Gate(3, count=told.append)
    with gate.entered():
        pass
    with pytest.raises(Problem), gate.entered():
        raise Problem(400, "no picture")
    for error in (Expired(503, "too late"), asyncio.CancelledError()):
        with pytest.raises(type(error)), gate.entered():
            raise error
    with gate.entered() as place:
        place.outcome = "left"
    assert told == ["answered", "answered", "expired", "expired", "left"]
    assert (gate.accepted, gate.answered, gate.expired, gate.left) == (5, 2, 2, 1)


def test_gate_tells_refused_clients_different_times() -> None:
    gate, first = busy_gate()
    gate.computed(first)
    gate.admit(first, [10_000_000])
    waits = []
    for _ in range(5):
        with pytest.raises(Refused) as caught, gate.entered() as place:
            gate.admit(place, [10_000_000])
        waits.append(int(caught.value.headers["Retry-After"]))
    assert waits == sorted(waits)
    assert waits[0] < waits[-1] <= 15


def test_gate_bounds_the_bytes_of_uploads() -> None:
    gate = Gate(10, max_held_bytes=1000)
    with gate.entered() as first:
        gate.hold(first, 800)
        with pytest.raises(Refused, match="too many uploads"), gate.entered() as second:
            gate.hold(second, 300)
        gate.hold(first, 100)


def test_gate_that_ends_lets_in_only_what_fits() -> None:
    gate, first = busy_gate()
    gate.computed(first)
    gate.end(time.monotonic() + 6)
    with gate.entered() as place:
        gate.admit(place, [2_000_000])
    with pytest.raises(Refused, match="about to end"), gate.entered() as place:
        gate.admit(place, [9_000_000])
    assert gate.in_time(1_000_000, time.monotonic() + 20)
    assert not gate.in_time(14_000_000, time.monotonic() + 20)


def test_room_waits_until_the_model_is_less_busy() -> None:
    async def main() -> None:
        gate, first = busy_gate()
        gate.computed(first)
        gate.admit(first, [15_000_000])
        waiting = asyncio.create_task(gate.room())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        gate.computed(first)
        await asyncio.wait_for(waiting, 1)
        gate.admit(first, [15_000_000])
        waiting = asyncio.create_task(gate.room())
        await asyncio.sleep(0.05)
        gate.end(time.monotonic() + 1)
        await asyncio.wait_for(waiting, 1)

    asyncio.run(main())


def test_gate_full_of_slow_uploads_ends_the_slowest_and_lets_in() -> None:
    async def scenario() -> None:
        gate = Gate(2)
        with (
            gate.entered() as first,
            gate.entered() as second,
            gate.reading(first) as first_ends,
            gate.reading(second) as second_ends,
        ):
            with pytest.raises(Refused), gate.entered():  # neither is slow yet
                pass
            assert first.reading_since is not None
            first.reading_since -= 9
            with gate.entered():
                assert first_ends.done()
                assert not second_ends.done()
                assert gate.inside == 2

    asyncio.run(scenario())


def test_gate_full_of_work_refuses_however_long_the_uploads_took() -> None:
    async def scenario() -> None:
        gate = Gate(1)
        with gate.entered() as place:
            with gate.reading(place):
                assert place.reading_since is not None
                place.reading_since -= 9
            with pytest.raises(Refused), gate.entered():
                pass

    asyncio.run(scenario())
