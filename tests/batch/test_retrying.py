from __future__ import annotations

import pytest

from magtiles_seg.batch import stores
from magtiles_seg.batch.stores import persist


def _never(_: Exception) -> bool:
    return False


def _always(_: Exception) -> bool:
    return True


class Flaky:
    def __init__(self, failures: int) -> None:
        self.failures, self.calls = failures, 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError(f"outage {self.calls}")
        return "answer"


def test_persist_waits_longer_each_time_until_it_answers() -> None:
    waits: list[float] = []
    answer = persist(Flaky(4), patience_s=60, is_final=_never, sleep=waits.append)
    assert answer == "answer"
    assert all(
        low <= wait <= 2 * low for wait, low in zip(waits, (0.1, 0.2, 0.4, 0.8), strict=True)
    )


def test_persist_out_of_patience_raises_the_last_error() -> None:
    waits: list[float] = []
    flaky = Flaky(10**6)
    with pytest.raises(ConnectionError, match="outage"):
        persist(flaky, patience_s=90, is_final=_never, sleep=waits.append)
    assert sum(waits) == pytest.approx(90)
    assert max(waits) <= 20
    assert flaky.calls == len(waits) + 1


def test_persist_final_error_is_raised_at_once() -> None:
    flaky = Flaky(1)
    with pytest.raises(ConnectionError, match="outage 1"):
        persist(flaky, patience_s=60, is_final=_always)
    assert flaky.calls == 1


def test_persist_tells_what_it_waits_for_once_a_minute_and_nothing_of_short_waits(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "_next_told_s", 0.0)
    persist(Flaky(3), patience_s=60, is_final=_never, sleep=lambda _: None)
    assert not capsys.readouterr().err
    for _ in range(2):
        persist(Flaky(9), patience_s=60, is_final=_never, sleep=lambda _: None)
    (told,) = capsys.readouterr().err.splitlines()
    assert "waiting until it passes, 60 s at most (--patience-s): outage" in told
