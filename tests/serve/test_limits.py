from __future__ import annotations

import pytest

from magtiles_seg.serve.limits import Gate, check_format, format_of
from magtiles_seg.serve.problems import Problem


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\x89PNG\r\n\x1a\nrest", "PNG"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"RIFF\0\0\0\0WEBP", "WEBP"),
        (b"RIFF\0\0\0\0WAVE", None),
        (b"MM\0*", "TIFF"),
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
