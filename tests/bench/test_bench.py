from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from magtiles_seg import cli, pipeline
from magtiles_seg.bench import run as bench
from magtiles_seg.bench import table as benchtable
from magtiles_seg.bench.entries import (
    Candidate,
    Case,
    Entry,
    enter_eager,
    find_candidates,
    network_gflop,
)
from magtiles_seg.bench.reference import ReferenceNetwork
from magtiles_seg.bench.run import BenchReport, peak_mib
from magtiles_seg.bench.select import select_fastest
from magtiles_seg.errors import BackendUnavailableError, ConfigError, ParityError
from magtiles_seg.export.parity import Tolerance
from magtiles_seg.export.precision import convert

SMALL = Case(height_px=64, width_px=70)


@pytest.fixture(scope="module")
def report(model: Path) -> BenchReport:
    """Of two sizes, on onnxruntime alone."""
    cases = (SMALL, Case(height_px=64, width_px=80, batch=2))
    return bench.measure(
        model, cases=cases, backends=["onnxruntime"], threads=[1], rounds=2, burst=1
    )


def test_measure_reports_each_entry_of_each_case(report: BenchReport) -> None:
    kinds = [(row.kind, row.batch) for row in report.rows]
    assert kinds == [(kind, n) for n in (1, 2) for kind in ("candidate", "eager", "sgemm")]
    assert report.architecture == "nano"
    for row in report.rows:
        assert 0 < row.p50_ms <= row.p95_ms <= row.p99_ms
        assert (row.mpix_s is None) == (row.kind == "sgemm")
        assert row.gflop_s is not None
        assert row.gflop_s > 0
    assert report.rows[1].times_eager == report.rows[2 + 2].times_eager == 1
    assert report.rows[2].gemm_fraction == pytest.approx(1)
    assert 0 < (report.rows[0].overhead_fraction or 0) < 1


def test_network_that_this_version_cannot_build_is_compared_with_nothing() -> None:
    labels = ("background", "crack")
    assert network_gflop("of-another-version", labels, SMALL) is None
    with pytest.raises(BackendUnavailableError, match="unknown architecture 'of-another-version'"):
        enter_eager("of-another-version", labels, SMALL)
    alone = [network_gflop(name, labels, SMALL) or 0 for name in ("nano", "small")]
    assert network_gflop("nano+small", labels, SMALL) == pytest.approx(sum(alone))
    for shared in ("nano+nano", "patches+lite0"):
        assert network_gflop(shared, labels, SMALL) is None


def test_measure_restores_torch_and_tells_its_progress(model: Path) -> None:
    threads, steps = torch.get_num_threads(), []
    bench.measure(
        model,
        cases=[SMALL],
        backends=["onnxruntime"],
        threads=[1],
        rounds=2,
        burst=1,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps == [(1, 2), (2, 2)]
    assert torch.get_num_threads() == threads


def test_rows_take_the_median_of_ratios_of_rounds() -> None:
    case = Case(height_px=100, width_px=100, batch=2)
    entries = [
        Entry(name=kind, kind=kind, call=lambda: None, gflop=gflop)
        for kind, gflop in (("candidate", 1.0), ("eager", 1.0), ("reference", None), ("sgemm", 4.0))
    ]
    entries[0].candidate = Candidate(path=Path("m.onnx"), backend="onnxruntime", threads=1)
    whole = np.array([[10, 20, 10], [30, 100, 20], [60, 60, 60], [10, 20, 20]], float)
    times_s = np.repeat(np.stack([whole, whole], axis=1)[..., None], 3, axis=3) / 1e3
    times_s[0, 1] = times_s[0, 0] * 0.9
    row = bench._rows(entries, times_s, case, 1, memory=False)[0]
    assert row.p50_ms == pytest.approx(10)
    assert row.times_eager == pytest.approx(3)
    assert row.times_reference == pytest.approx(12)  # two pictures of the reference a call
    assert row.overhead_fraction == pytest.approx(0.1)
    assert row.gflop_s == pytest.approx(1 / 9e-3)
    # A quarter of the median of 10/9, 20/18 and 20/9: a quarter of its work.
    assert row.gemm_fraction == pytest.approx(10 / 9 / 4)
    assert row.pictures_s == pytest.approx(200)
    assert row.mpix_s == pytest.approx(2)


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"burst": 0}, {"cases": ()}])
def test_measure_of_nothing_is_config_error(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="rounds, burst and cases must be at least 1"):
        bench.measure(**wrong)  # type: ignore[arg-type]


def test_reference_network_has_the_41_m_parameters_that_it_stands_for() -> None:
    with torch.device("meta"):
        network = ReferenceNetwork().eval()
        logits = network(torch.zeros(1, 3, 64, 96))
    assert logits.shape == (1, 2, 64, 96)
    parameters = sum(weight.numel() for weight in network.parameters())
    assert parameters == pytest.approx(41.2e6, rel=0.005)


def test_candidates_cover_files_threads_and_installed_backends(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    int8 = tmp_path / "int8.onnx"
    tiles = tuple(np.random.default_rng(0).integers(0, 256, (2, 40, 50), np.uint8))
    int8.write_bytes(convert(model.read_bytes(), "int8", pictures=tiles, unsigned=True))
    found = find_candidates(model, also=[int8], threads=[1, 2])
    for one in found:  # OpenVINO has bf16 for some int8 files alone
        one.open().close()
    ways = {(one.path.name, one.backend, one.threads) for one in found if one.device == "cpu"}
    backends = ("onnxruntime", "openvino")
    assert ways == {
        (name, backend, threads)
        for name in (model.name, "int8.onnx")
        for backend in backends
        for threads in (1, 2)
    }


def test_candidate_of_unknown_backend_is_config_error(model: Path) -> None:
    with pytest.raises(ConfigError, match="'eager' runs no ONNX files"):
        find_candidates(model, backends=["eager"])


def test_candidate_of_missing_backend_is_an_error_only_when_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    assert {one.backend for one in find_candidates(model)} == {"onnxruntime"}
    with pytest.raises(BackendUnavailableError, match="openvino is not installed"):
        find_candidates(model, backends=["openvino"])


def test_peak_memory_is_that_of_a_whole_process(model: Path) -> None:
    peak = peak_mib(Candidate(path=model, backend="onnxruntime", threads=1), SMALL)
    assert peak is None or 30 < peak < 4000


def test_table_has_a_line_a_row_and_chart_is_drawn(report: BenchReport) -> None:
    lines = benchtable.as_markdown(report).splitlines()
    assert len(lines) == 4 + len(report.rows)
    assert len({line.count("|") for line in lines[2:]}) == 1
    assert len({len(line) for line in lines[2:]}) == 1  # aligned as text, too
    chart = np.asarray(benchtable.draw_chart(report))
    assert chart.std() > 10


def _with_times(report: BenchReport, *candidates: tuple[Candidate, float]) -> BenchReport:
    row = report.rows[0]
    rows = tuple(replace(row, candidate=one, p50_ms=ms) for one, ms in candidates)
    return replace(report, rows=rows)


def test_choose_takes_the_fastest_that_passes_parity(
    report: BenchReport, model: Path, tmp_path: Path
) -> None:
    from magtiles_seg.export.graph import export_onnx
    from magtiles_seg.model.checkpoint import save_checkpoint
    from magtiles_seg.model.network import build_network

    wrong = tmp_path / "wrong.safetensors"
    save_checkpoint(wrong, build_network("nano"), {})
    export_onnx(wrong, wrong.with_suffix(".onnx"))
    plain = Candidate(path=model, backend="onnxruntime", threads=1)
    slow = replace(plain, threads=2)
    other = replace(plain, path=wrong.with_suffix(".onnx"))
    refused: list[Candidate] = []
    chosen = select_fastest(
        _with_times(report, (slow, 30.0), (plain, 20.0), (other, 10.0)),
        model,
        refused=lambda candidate, _: refused.append(candidate),
    )
    assert (chosen.backend, chosen.threads, chosen.file) == ("onnxruntime", 1, None)
    assert refused == [other]
    with pytest.raises(ParityError, match="no candidate answers"):
        select_fastest(_with_times(report, (other, 10.0)), model)
    loose = Tolerance(min_dice=0, max_abs_diff=1, max_flipped_fraction=1)
    chosen = select_fastest(_with_times(report, (other, 10.0)), model, tolerance=lambda _: loose)
    assert chosen.file == str(other.path)


def test_bench_verb_writes_report_and_selects(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--size", "64x70", "--rounds", "1", "--threads", "1", "--backend", "onnxruntime"]
    where = ["--model", str(model), "--out", str(tmp_path / "out"), "--select"]
    assert cli.main(["bench", *words, *where]) == 0
    said = f"selected {model.stem}, onnxruntime cpu"
    assert said in capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["bench.json", "bench.md", "bench.png"]
    saved = json.loads((tmp_path / "out" / "bench.json").read_text(encoding="utf-8"))
    assert saved["rows"][0]["candidate"]["backend"] == "onnxruntime"
    assert cli.main(["info", "--model", str(model)]) == 0
    assert "nothing-selected.json" in capsys.readouterr().out


def test_bench_verb_names_whom_parity_refuses(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from magtiles_seg.bench import select

    def refuse(*_: object) -> None:
        raise ParityError("it answers differently")

    monkeypatch.setattr(select, "check", refuse)
    words = ["--size", "64x70", "--rounds", "1", "--threads", "1", "--backend", "onnxruntime"]
    assert cli.main(["bench", "--model", str(model), "--select", *words]) == 2
    said = f"{model.stem}, onnxruntime cpu fp32, 1 thread: it answers differently"
    assert said in capsys.readouterr().err


def test_bench_verb_says_that_it_is_the_int8_file_that_differs(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ParityError("it answers differently")

    monkeypatch.setattr(pipeline, "export_artefact", refuse)
    for number in range(2):
        drawn = np.random.default_rng(number).integers(0, 256, (64, 70), np.uint8)
        Image.fromarray(drawn).save(tmp_path / f"{number}.png")
    words = ["--size", "64x70", "--rounds", "1", "--threads", "1", "--backend", "onnxruntime"]
    where = ["--model", str(model), "--select", "--data", str(tmp_path)]
    assert cli.main(["bench", *words, *where]) == 0
    said = capsys.readouterr().err
    assert "magtiles-seg: makes an int8 file for this machine, which takes minutes" in said
    assert "magtiles-seg: int8: it answers differently" in said


def test_bench_verb_with_wrong_size_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--size", "288"]) == 2
    assert "expected height x width" in capsys.readouterr().err


def test_bench_verb_with_tiles_and_no_choice_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--data", "tiles"]) == 2
    assert "add --select" in capsys.readouterr().err


def test_bench_whose_choice_cannot_be_written_ends_before_it_measures(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("MAGTILES_CONFIG", str(tmp_path / "file" / "backends.json"))
    assert cli.main(["bench", "--model", str(model), "--select"]) == 2
    printed = capsys.readouterr()
    assert "is no folder; name another file in the variable MAGTILES_CONFIG" in printed.err
    assert not printed.out


def test_thread_counts_are_all_cores_and_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    from magtiles_seg.commands.bench import thread_counts
    from magtiles_seg.infer.backends import base

    for cores, counts in ((1, [1]), (2, [1, 2]), (16, [4, 8, 16])):
        monkeypatch.setattr(base, "available_cores", lambda cores=cores: cores)
        assert thread_counts() == counts


def test_choice_on_tiles_limits_each_class(
    report: BenchReport, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from magtiles_seg.bench import select
    from magtiles_seg.export.parity import TileSet, compare

    shown: list[tuple[str, ...]] = []

    def compared(*backends: Any, **options: Any) -> Any:  # noqa: ANN401
        shown.append(options["classes"])
        return compare(*backends, **options)

    monkeypatch.setattr(select, "compare", compared)
    tiles = TileSet(pictures=(SMALL.pictures()[0],), classes=("crack",), origin="real")
    select_fastest(report, model, proof=tiles)
    assert shown == [("crack",)]


def test_choice_without_real_tiles_refuses_bf16_unopened(report: BenchReport, model: Path) -> None:
    plain = Candidate(path=model, backend="onnxruntime", threads=1)
    fast = Candidate(path=Path("none.onnx"), backend="openvino", threads=1, precision="bf16")
    errors: list[str] = []
    chosen = select_fastest(
        _with_times(report, (plain, 20.0), (fast, 10.0)),
        model,
        refused=lambda _, error: errors.append(str(error)),
    )
    assert chosen.backend == "onnxruntime"
    assert "name real ones that the model was not trained on" in errors[0]
