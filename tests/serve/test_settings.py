from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.errors import ConfigError
from magtiles_seg.serve.settings import Settings, parse, unknown_variables


def test_read_without_anything_gives_the_defaults() -> None:
    assert Settings.read({}) == Settings()


def test_read_flags_go_before_environment_and_environment_before_defaults() -> None:
    environment = {"MAGTILES_PORT": "9000", "MAGTILES_MAX_FILES": "3", "MAGTILES_DEMO": "off"}
    settings = Settings.read(environment, {"port": 9001, "max_files": None})
    assert (settings.port, settings.max_files, settings.demo) == (9001, 3, False)


def test_read_port_of_a_hosting_service_stands_in_for_ours() -> None:
    assert Settings.read({"PORT": "4711"}).port == 4711
    assert Settings.read({"PORT": "4711", "MAGTILES_PORT": "80"}).port == 80


def test_what_kubernetes_sets_for_a_service_called_magtiles_is_no_setting() -> None:
    linked = {
        "MAGTILES_PORT": "tcp://10.0.0.7:8000",
        "MAGTILES_SERVICE_HOST": "10.0.0.7",
        "MAGTILES_SERVICE_PORT_HTTP": "8000",
        "MAGTILES_PORT_8000_TCP_ADDR": "10.0.0.7",
    }
    assert Settings.read(linked).port == 8000
    assert Settings.read({**linked, "PORT": "4711"}).port == 4711
    assert unknown_variables(linked) == []


@given(st.floats(0, 1), st.booleans(), st.none() | st.text("abc:/", min_size=1))
def test_to_environment_read_again_is_equal(score: float, demo: bool, model: str | None) -> None:
    settings = Settings(threshold=score, demo=demo, model=model, mm_per_px=0.05)
    assert Settings.read(settings.to_environment()) == settings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"port": 70000}, "serve.port: expected 0 to 65535"),
        ({"threshold": 1.5}, "serve.threshold: expected 0 to 1"),
        ({"max_files": 0, "port": -1}, "2 mistakes"),
        ({"formats": "PNG,EXE"}, "expected some of PNG, .*got 'EXE'"),
        ({"shadow_url": "ftp://x"}, "expected http://host/… or https://host/…, got 'ftp://x'"),
        ({"shadow_url": "http://"}, "expected http://host"),
        ({"shadow_url": "http://[x"}, "expected http://host"),
        ({"shadow_url": "http://me:word@"}, "got 'http://…@'"),
        ({"shadow_api_key": "two\nlines"}, "serve.shadow_api_key: expected a key of ASCII"),
        ({"max_body_mb": 1e300}, "serve.max_body_mb: expected 0.001 to 10000"),
        ({"max_pixels": 10**21}, "serve.max_pixels: expected 1 to 1000000000"),
    ],
)
def test_settings_without_sense_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Settings(**values)  # type: ignore[arg-type]


def test_read_text_that_is_no_number_names_the_variable() -> None:
    with pytest.raises(ConfigError, match="MAGTILES_PORT: expected a whole number, got 'http'"):
        Settings.read({"MAGTILES_PORT": "http"})
    with pytest.raises(ValueError, match="expected true or false"):
        parse("perhaps", "bool")


def test_shown_and_repr_hold_no_secret() -> None:
    digest = "0123456789abcdef" * 4
    settings = Settings(
        api_keys=f"line-1:{digest}",
        shadow_url="https://me:word@host/analyze",
        shadow_api_key="mt_secret",
    )
    shown = settings.shown()
    assert shown["shadow_api_key"] == "set"
    assert "mt_secret" not in str(shown) + repr(settings)
    assert shown["api_keys"] == "set (line-1)"
    assert shown["shadow_url"] == "https://…@host/analyze"
    assert digest not in str(shown) + repr(settings)
    assert "word" not in str(shown)


def test_unknown_variables_are_named_with_the_nearest_known() -> None:
    remarks = unknown_variables({"MAGTILES_PRT": "1", "MAGTILES_DATA": "x", "HOME": "y"})
    assert remarks == ["MAGTILES_PRT is no setting; did you mean 'MAGTILES_PORT'?"]


@given(st.integers(1, 256), st.integers(0, 8), st.integers(0, 16))
def test_plan_never_uses_more_threads_than_cores_unless_workers_ask(
    cores: int, workers: int, threads: int
) -> None:
    plan = Settings(workers=workers, threads=threads).plan(cores)
    assert min(plan.workers, plan.streams, plan.threads) >= 1
    assert workers or plan.workers * plan.streams * plan.threads <= cores
    assert not workers or plan.workers == workers


def test_plan_of_two_cores_is_two_inferences_at_once_and_of_a_gpu_one_with_batches() -> None:
    on_cpu, on_gpu = Settings().plan(2), Settings(device="cuda").plan(16)
    assert (on_cpu.workers, on_cpu.streams, on_cpu.threads, on_cpu.max_batch) == (1, 2, 1, 1)
    assert (on_gpu.workers, on_gpu.streams, on_gpu.max_batch) == (1, 1, 16)


def test_demo_is_shown_only_when_asked_and_then_in_one_process() -> None:
    assert not Settings().demo
    assert Settings().plan(32).workers == 4
    assert Settings(demo=True).plan(32).workers == 1


@pytest.mark.parametrize(
    ("values", "said"),
    [({"api_keys": f"a:{'0' * 64}"}, "got both"), ({"workers": 2}, "workers of 1")],
)
def test_demo_with_what_it_cannot_stand_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Settings(demo=True, **values)
