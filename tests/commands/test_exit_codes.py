"""What the command line answers when something breaks that is none of the pictures' fault."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image

import magtiles_seg
from magtiles_seg import cli, errors
from magtiles_seg.commands import info


def breaking(error: BaseException) -> Callable[..., NoReturn]:
    def run(_arguments: object) -> NoReturn:
        raise error

    return run


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], int]:
    """Run a verb that raises an error; return the exit code."""

    def give(error: BaseException) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(info, "run", breaking(error))
            return cli.main(["info"])

    return give


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        AssertionError(),
        RecursionError("maximum recursion depth exceeded"),
        RuntimeError("line 1\nline 2"),
        UnicodeEncodeError("ascii", "ü", 0, 1, "ordinal not in range(128)"),
    ],
)
def test_bug_exits_70_with_its_place_and_without_a_traceback(
    error: Exception, answer: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(error) == 70
    err = capsys.readouterr().err
    assert f"internal error, a bug of magtiles-seg {magtiles_seg.__version__}" in err
    assert type(error).__name__ in err
    assert "test_exit_codes.py:" in err
    assert "MAGTILES_DEBUG=1" in err
    assert "Traceback" not in err


def test_bug_with_debug_set_shows_the_traceback(
    answer: Callable[[BaseException], int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MAGTILES_DEBUG", "1")
    assert answer(KeyError("x")) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 2, "memory ran out"),
        (SystemExit(1), 2, ""),
        (SystemExit("a library's own words"), 2, ""),
        (SystemExit(0), 0, ""),
        (errors.DataError("no 'a\nmagtiles-seg: b'"), 2, "no 'a\n  magtiles-seg: b'\n"),
        (BrokenPipeError(), 2, ""),
        (PermissionError(13, "Permission denied", "x"), 2, "x: Permission denied"),
        (OSError(27, "File too large", "x", None, "y"), 2, "x to y: File too large"),
        (IsADirectoryError(21, "Is a directory", "x"), 2, "x is a folder; expected a file"),
        (
            NotADirectoryError(20, "Not a directory", "x/y"),
            2,
            "x/y: a file stands where a folder is expected",
        ),
        (ValueError("http://me:pw@h/?token=abc"), 70, "http://***@h/?token=***"),
    ],
)
def test_other_endings_have_their_own_code(
    error: BaseException,
    code: int,
    said: str,
    answer: Callable[[BaseException], int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert answer(error) == code
    err = capsys.readouterr().err
    assert said in err
    assert bool(said) == bool(err)


ROOT = Path(magtiles_seg.__file__).parents[1]


def shell(command: str) -> subprocess.CompletedProcess[str]:
    program = f"{sys.executable} -m magtiles_seg"
    return subprocess.run(
        ["bash", "-c", command.replace("PROGRAM", program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("words", ["--help", "info"])
def test_reader_that_has_seen_enough_is_no_noise(words: str) -> None:
    done = shell(f"PROGRAM {words} 2>&1 | true; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.split() in (["0"], ["2"])
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_stdout_on_a_full_disk_exits_2() -> None:
    done = shell("PROGRAM info > /dev/full")
    assert done.returncode == 2
    assert done.stderr.startswith("magtiles-seg: the output cannot be written: No space left")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_do_no_harm(closed: str) -> None:
    assert shell(f"PROGRAM info {closed}").returncode == 0


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_leave_the_exit_code_of_a_verb_that_draws_a_bar(
    closed: str, tmp_path: Path
) -> None:
    tile = tmp_path / "tile.png"
    Image.new("L", (64, 64), 128).save(tile)
    for limit, code in (("1.0", 0), ("0.0", 1)):
        assert shell(f"PROGRAM segment {tile} --reject-score {limit} {closed}").returncode == code
    assert shell(f"PROGRAM segment {tile}.gone {closed}").returncode == 2


def test_help_lists_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--help"])
    assert "70 an internal error" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["ImportError", "OSError", "RuntimeError"])
@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("onnxruntime", "segment a.png"),
        ("onnx", "export --to onnx --out o"),
        ("torch", "train"),
        ("gradio", "demo"),
        ("pyarrow", "batch . --out o"),
    ],
)
def test_package_that_cannot_be_loaded_is_named_and_no_bug(
    package: str, words: str, kind: str, tmp_path: Path
) -> None:
    (tmp_path / package).mkdir()
    broken = f"raise {kind}('libfoo.so.1: cannot open shared object file')"
    (tmp_path / package / "__init__.py").write_text(broken)
    done = shell(f"cd {tmp_path} && PYTHONPATH=$PWD:{ROOT} PROGRAM {words}")
    assert done.returncode == 2, done.stderr
    assert "libfoo.so.1" in done.stderr
    assert "install" in done.stderr


def test_needed_package_that_cannot_be_loaded_is_no_bug_but_a_wrong_import_of_ours_is(
    answer: Callable[[BaseException], int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(ImportError("libGL.so.1: cannot open shared object file", name="cv2")) == 2
    assert "libGL.so.1" in capsys.readouterr().err
    assert answer(ImportError("no such name", name="magtiles_seg.image")) == 70


@pytest.mark.parametrize(
    "words",
    [
        "data split --params odd.txt",
        "evaluate --scored odd.txt",
        "data leak odd.txt odd.txt",
        "data load --set data_load.source=pictures --set data_load.checksums=odd.txt",
    ],
)
def test_text_file_in_another_encoding_is_named_and_no_bug(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd.txt").write_bytes("Schäden".encode("latin-1"))
    Path("pictures").mkdir()
    assert cli.main(words.split()) == 2
    said = "odd.txt is no text in UTF-8: invalid continuation byte at byte 3; save it as UTF-8"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("value", ["2024-02-31", "[" * 3000])
def test_parameter_that_yaml_cannot_make_is_named_and_no_bug(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "split", "--set", f"train.start={value}"]) == 2
    assert "override 'train.start=" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["set", "set/out", "set/a/../b"])
def test_convert_into_its_own_source_is_refused(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("set/a").mkdir(parents=True)
    assert cli.main(["data", "convert", "set", out, "--to", "coco"]) == 2
    assert (
        f"{out} lies in set, which would then hold every picture twice" in capsys.readouterr().err
    )


def test_path_of_the_wrong_kind_is_told_in_words_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    for words, said in {
        "data split --params folder": "folder is a folder; expected a file",
        "data leak folder file": "file: no table of scored pictures",
        "data synth file": "file is no folder; name another folder",
        "train --out file": "file is no folder; name another --out",
        "train --logs file/below": "file is no folder; name other --logs",
        "crossval --out file": "file is no folder; name another --out",
        "evaluate --json folder": "folder is a folder; expected the name of a file as --json",
        "evaluate --json file/x.json": "file is no folder; name another --json",
        "export --to onnx --out file": "file is no folder; name another --out",
        "loop export folder file --to coco": "file is a file; expected a new folder",
    }.items():
        assert cli.main(words.split()) == 2
        assert said in capsys.readouterr().err
    assert sorted(map(str, tmp_path.iterdir())) == [
        str(tmp_path / name) for name in ("file", "folder")
    ]


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_convert_with_a_tolerance_that_is_none_is_refused(
    tolerance: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "synth", "set", "--tiles", "1"]) == 0
    words = ["data", "convert", "set", "out", "--to", "coco", "--tolerance", tolerance]
    assert cli.main(words) == 2
    assert "expected a number of pixels from 0 on" in capsys.readouterr().err
    assert not Path("out").exists()


def test_other_mistake_leaves_no_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words, said in {
        "evaluate --folds here there": "here is no run",
        "batch nope": "there is no source",
        "batch . --model nope.onnx": "nope.onnx",
        "stream nope": "no such file",
        "data audit --model nope.onnx": "nope.onnx",
        "data group nope": "nope",
        "report --base nope": "not a git repository",
    }.items():
        assert cli.main([*words.split(), "--out", "out/deep"]) == 2
        assert said in capsys.readouterr().err
        assert not Path("out").exists(), words


def test_output_below_a_broken_link_or_of_too_long_a_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    for out, said in (
        (tmp_path / "link" / "x", "link is a broken link"),
        (tmp_path / ("x" * 300), "cannot be made: File name too long"),
    ):
        assert cli.main(["data", "synth", str(out), "--tiles", "1"]) == 2
        assert said in capsys.readouterr().err


def test_synth_into_a_file_says_what_is_in_the_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").touch()
    assert cli.main(["data", "synth", str(tmp_path / "a.jpg"), "--tiles", "1"]) == 2
    assert "a.jpg cannot be the output folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("out", "said"),
    [
        ("screen.bin", "expected a name that ends in .onnx"),
        ("folder.onnx", "is a folder; expected the name of a file"),
        ("file/screen.onnx", "cannot be the output folder"),
    ],
)
@pytest.mark.parametrize("verb", ["screen", "export --model m.safetensors"])
def test_output_that_cannot_be_written_is_told_before_the_work(
    verb: str,
    out: str,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if verb.startswith("export") and not out.endswith(".onnx"):
        pytest.skip("a folder of artefacts")
    monkeypatch.chdir(tmp_path)
    Path("folder.onnx").mkdir()
    Path("file").touch()
    assert cli.main([*verb.split(), "--out", out]) == 2
    assert said in capsys.readouterr().err
