from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from forge_api import ForgeApi, served
from hypothesis import given
from hypothesis import strategies as st

from magtiles_seg.dataset.splits import Split, part_sha256
from magtiles_seg.delivery.gate import FIXED, Scored, Verdict, judge
from magtiles_seg.delivery.revisions import Revision, fetch_model, git
from magtiles_seg.errors import ConfigError, DataError, DeliveryError
from magtiles_seg.evaluate.compare import read_pictures
from magtiles_seg.evaluate.plots.curves import metrics, pictures
from magtiles_seg.evaluate.report import EvaluationResult, summarize
from magtiles_seg.jsontext import flatten
from magtiles_seg.model.card import ModelCard

SPLIT = Split("grouped", 0, 0, 5, 0.1, ("t",), ("v",), ("c0",), data_sha256="d")
PARAMS = """\
data_load: {{source: a.zip}}
data_split: {{seed: {seed}}}
train: {{epochs: {epochs}, start: {start}}}
evaluate: {{protocol: T}}
gate: {{improve: [+iou], guard: [+auroc]}}
"""
LOCK = """\
stages:
  data_load: {{outs: [{{path: data, md5: {data}}}]}}
  data_split: {{outs: [{{path: runs/split.json, md5: s}}]}}
"""
OLD, NEW = [2, 5, 3, 4, 5, 4], [8, 9, 7, 9, 8, 9]


def scored(
    found: list[int],
    *,
    training: str | None = part_sha256(["t"]),
    ancestors: Sequence[str] = (),
) -> Scored:
    """Score a model that finds `found[t]` of the 10 px of tile t's crack."""
    rows = ["picture,class,tile,tp,fp,fn,tn,score,verdict"]
    for tile, hit in enumerate(found):
        rows.append(f"c{tile},crack,{tile},{hit},0,{10 - hit},90,{0.1 + hit / 20},reject")
        rows.append(f"f{tile},free,{100 + tile},0,0,0,100,0.01,accept")
    result = summarize(read_pictures("\n".join(rows)), protocol="T", resamples=0)
    said = {"ancestors": ancestors, **({} if training is None else {"training_sha256": training})}
    labels = ("background", "crack")
    card = ModelCard(name="m", architecture="nano", labels=labels, stride=8, training=said)
    return Scored(result=result, card=card)


class Branches:
    """A repository with `dev`, whose model is OLD, and `exp`, which says what it is told to."""

    def __init__(self, repository: Path, folder: str = "") -> None:
        git("init", "--quiet", "--initial-branch=dev", root=repository)
        self.root = repository / folder
        self.root.mkdir(exist_ok=True)
        self.write(scored(OLD).result)
        self.commit("dev")
        git("checkout", "--quiet", "-b", "exp", root=self.root)

    def write(self, result: EvaluationResult, **params: object) -> None:
        (self.root / "results").mkdir(exist_ok=True)
        rows = pictures(result.records)
        with (self.root / "results/pictures.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0].keys())
            table.writeheader()
            table.writerows(rows)
        (self.root / "results/metrics.json").write_text(json.dumps(metrics(result)))
        values = {"seed": 0, "epochs": 3, "start": "null", **params}
        (self.root / "params.yaml").write_text(PARAMS.format(**values))
        (self.root / "dvc.lock").write_text(LOCK.format(data=params.get("data", "d")))

    def commit(self, message: str) -> None:
        git("add", "--all", root=self.root)
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
        git(*who, "commit", "--quiet", "--message", message, root=self.root)

    def judge(
        self, head: Scored | None, *, has_base: bool = True, ancestors: Sequence[str] = ()
    ) -> Verdict:
        """Judge `exp`, committed as it stands, in a checkout of `dev`."""
        self.commit("exp")
        git("checkout", "--quiet", "dev", root=self.root)
        models = {"dev": scored(OLD, ancestors=ancestors) if has_base else None, "exp": head}
        base, exp = (Revision(self.root, name) for name in models)
        return judge(base, exp, SPLIT, lambda state: models[str(state.name)])


@pytest.fixture
def branches(tmp_path: Path) -> Branches:
    return Branches(tmp_path)


def test_judge_of_a_better_model_with_true_figures_merges(branches: Branches) -> None:
    new = scored(NEW)
    branches.write(new.result, epochs=9)
    verdict = branches.judge(new)
    assert verdict.merge
    text = str(verdict)
    assert text.startswith("gate: merge\n- `iou` is better by +0.450 (95 % interval +")
    assert "12 tiles show a true difference of 0." in text
    assert "scored again on 12 test pictures of 12 tiles, protocol T" in text


def test_judge_of_the_same_model_does_not_merge(branches: Branches) -> None:
    branches.write(scored(OLD).result, epochs=9)
    verdict = branches.judge(scored(OLD))
    assert not verdict.merge
    assert "the two models do not differ" in str(verdict)


def test_judge_of_faked_figures_refuses_with_both_numbers(branches: Branches) -> None:
    branches.write(scored(NEW).result, epochs=9)  # as it wishes to be
    verdict = branches.judge(scored(OLD))  # as it is
    assert not verdict.merge
    text = str(verdict)
    assert "refused: the figures of exp (" in text
    assert "results/metrics.json says iou 0.8333, computed again it is 0.3833" in text
    assert "results/pictures.csv says iou 0.8333, computed again it is 0.3833" in text


@pytest.mark.parametrize("name", ["metrics.json", "pictures.csv"])
def test_judge_of_one_faked_file_refuses(branches: Branches, name: str) -> None:
    branches.write(scored(NEW).result, epochs=9)
    faked = (branches.root / "results" / name).read_text()
    branches.write(scored(OLD).result, epochs=9)
    (branches.root / "results" / name).write_text(faked)
    text = str(branches.judge(scored(OLD)))
    other = {"metrics.json": "pictures.csv", "pictures.csv": "metrics.json"}[name]
    assert f"results/{name} says iou 0.8333" in text
    assert f"results/{other} says iou" not in text


def fake_protocol(folder: Path) -> None:
    path = folder / "metrics.json"
    path.write_text(path.read_text().replace('"T"', '"native"'))


def fake_tiles(folder: Path) -> None:
    path = folder / "metrics.json"
    path.write_text(path.read_text().replace('"tiles": 12', '"tiles": 120'))


def drop_pictures(folder: Path) -> None:
    path = folder / "pictures.csv"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))


def not_a_number(folder: Path) -> None:
    values = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**values, "iou": float("nan")}))


def fewer_tiles(folder: Path) -> None:
    values = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps({**values, "pictures": 11, "tiles": 11}))


def no_figures(folder: Path) -> None:
    (folder / "metrics.json").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (fake_protocol, "metrics.json says protocol native, computed again it is T"),
        (fake_tiles, "metrics.json says tiles 120, computed again it is 12"),
        (drop_pictures, "pictures.csv holds other pictures than the test part"),
        (fewer_tiles, "metrics.json says pictures 11, computed again it is 12"),
        (fewer_tiles, "metrics.json says tiles 11, computed again it is 12"),
        (not_a_number, "metrics.json says iou nan, computed again it is 0.8333"),
        (no_figures, "has no results/pictures.csv or results/metrics.json"),
    ],
)
def test_judge_of_figures_that_say_something_else_refuses(
    branches: Branches, change: Callable[[Path], None], said: str
) -> None:
    branches.write(scored(NEW).result, epochs=9)
    change(branches.root / "results")
    verdict = branches.judge(scored(NEW))
    assert not verdict.merge
    assert said in str(verdict)


def test_judge_lets_the_rounding_of_another_machine_pass(branches: Branches) -> None:
    new = scored(NEW)
    branches.write(new.result, epochs=9)
    values = json.loads((branches.root / "results/metrics.json").read_text())
    values["iou"] += 0.0015
    (branches.root / "results/metrics.json").write_text(json.dumps(values))
    assert branches.judge(new).merge


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"seed": 1}, "data_split.seed is 1 at exp"),
        ({"start": "bundled"}, "train.start is 'bundled' at exp"),
        ({"start": "null, teacher: a.onnx"}, "train.teacher is 'a.onnx' at exp"),
        ({"data": "other"}, "data has the hash other at exp"),
    ],
)
def test_judge_of_other_data_or_weights_names_the_difference_before_any_scoring(
    branches: Branches, params: dict[str, object], said: str
) -> None:
    branches.write(scored(NEW).result, **params)
    verdict = branches.judge(None)  # its model would be an error
    assert not verdict.merge
    assert said in str(verdict)


def test_judge_of_a_weaker_gate_is_not_merged_by_it(branches: Branches) -> None:
    branches.write(scored(NEW).result)
    path = branches.root / "params.yaml"
    path.write_text(path.read_text().replace("[+iou]", "[+dice]"))
    assert "gate.improve is ['+dice'] at exp" in str(branches.judge(None))


@pytest.mark.parametrize(
    "path",
    [
        "magtiles_seg/evaluate/metrics.py",
        "dvc.yaml",
        "params.yaml.sh",
        "results.py",
        "docs/results/a",
        ".dvc/x",
        "results/x.dvc",  # `dvc pull` writes what it names to any place, such as code
        "results/dvc.yaml",
    ],
)
def test_judge_of_what_is_no_result_leaves_it_to_a_person(branches: Branches, path: str) -> None:
    branches.write(scored(NEW).result)
    file = branches.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("x")
    verdict = branches.judge(None)
    assert not verdict.merge
    assert f"changes {path}: a person reads" in str(verdict)


def test_judge_of_a_file_that_moved_among_the_results_leaves_it_to_a_person(
    branches: Branches,
) -> None:
    git("checkout", "--quiet", "dev", root=branches.root)
    (branches.root / "code.py").write_text("the same text\n" * 9)
    branches.commit("code")
    git("checkout", "--quiet", "exp", root=branches.root)
    git("merge", "--quiet", "dev", root=branches.root)
    branches.write(scored(NEW).result)
    git("mv", "code.py", "results/code.md", root=branches.root)
    assert "changes code.py: a person reads" in str(branches.judge(None))


@pytest.mark.parametrize("training", [None, "other"])
def test_judge_of_a_model_trained_on_other_pictures_is_refused(
    branches: Branches, training: str | None
) -> None:
    branches.write(scored(NEW).result)
    verdict = branches.judge(scored(NEW, training=training))
    assert not verdict.merge
    assert "was not trained on the training part of this split" in str(verdict)


def test_judge_of_an_ensemble_whose_member_knows_other_pictures_is_refused(
    branches: Branches,
) -> None:
    own = part_sha256(["t"])
    joined = scored(NEW, ancestors=[own, "f00"])
    branches.write(joined.result)
    verdict = branches.judge(joined)
    assert not verdict.merge
    assert "its teacher or one of its members, as its card says" in str(verdict)


@pytest.mark.parametrize("known", [[part_sha256(["t"])], [part_sha256(["t"]), "f00"]])
def test_judge_of_a_model_that_knows_what_the_base_s_knows_merges(
    branches: Branches, known: list[str]
) -> None:
    new = scored(NEW, ancestors=known)
    branches.write(new.result)
    assert branches.judge(new, ancestors=known).merge


def test_judge_without_the_base_s_model_leaves_it_to_a_person(branches: Branches) -> None:
    branches.write(scored(NEW).result)
    assert "has no model to compare with" in str(branches.judge(scored(NEW), has_base=False))


def test_judge_without_the_experiment_s_model_names_the_fix(branches: Branches) -> None:
    branches.write(scored(NEW).result)
    with pytest.raises(DataError, match="`dvc push` it"):
        branches.judge(None)


def test_judge_in_a_folder_of_a_repository_merges_the_results_in_it(tmp_path: Path) -> None:
    branches = Branches(tmp_path, "tiles ü")
    branches.write(scored(NEW).result, epochs=9)
    assert branches.judge(scored(NEW)).merge


@pytest.mark.parametrize("path", ["../params.yaml", "../results/x", "tiles ü/params.yaml"])
def test_judge_in_a_folder_of_a_repository_leaves_the_rest_to_a_person(
    tmp_path: Path, path: str
) -> None:
    branches = Branches(tmp_path, "tiles ü")
    git("config", "diff.relative", "true", root=tmp_path)
    branches.write(scored(NEW).result)
    (branches.root / path).parent.mkdir(exist_ok=True)
    (branches.root / path).write_text("{}")
    changed = (branches.root / path).resolve().relative_to(tmp_path.resolve())
    verdict = branches.judge(scored(NEW))
    assert not verdict.merge
    assert f" changes {changed}: a person reads" in str(verdict)


def test_judge_in_a_shallow_checkout_names_the_way_out(branches: Branches, tmp_path: Path) -> None:
    branches.write(scored(NEW).result)
    branches.commit("exp")
    clone = ("clone", "--quiet", "--depth", "1", "--no-single-branch", "--branch", "dev")
    git(*clone, branches.root.as_uri(), "shallow", root=tmp_path)
    shallow = tmp_path / "shallow"
    with pytest.raises(ConfigError, match=r"shallow.*git fetch --unshallow"):
        judge(Revision(shallow), Revision(shallow, "origin/exp"), SPLIT, lambda _: None)


def test_judge_of_damaged_figures_names_the_file_and_the_state(branches: Branches) -> None:
    branches.write(scored(NEW).result)
    (branches.root / "results/pictures.csv").write_text("picture;class\n")
    with pytest.raises(DataError, match=r"^results/pictures\.csv of exp \("):
        branches.judge(scored(NEW))


def test_judge_of_a_damaged_gate_of_the_base_names_it(tmp_path: Path) -> None:
    text = PARAMS.replace("[+iou]", "[iou]")
    branches = Branches(tmp_path)
    git("checkout", "--quiet", "dev", root=tmp_path)
    for name in ("dev", "exp"):
        git("checkout", "--quiet", name, root=tmp_path)
        (tmp_path / "params.yaml").write_text(text.format(seed=0, epochs=3, start="null"))
        if name == "dev":
            branches.commit("gate")
    with pytest.raises(ConfigError, match=r"gate\.improve: expected names of figures.* got iou"):
        branches.judge(scored(OLD))


@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 10)), min_size=3, max_size=6),
    st.floats(0.0021, 0.5),
)
def test_figures_further_off_than_the_tolerance_never_pass(
    hits: list[tuple[int, int]], step: float
) -> None:
    from magtiles_seg.delivery.gate import _numbers, _unlike

    true = _numbers(metrics(scored([hit for hit, _ in hits]).result))
    for name in true:
        for sign in (1, -1):
            said = {**true, name: true[name] + sign * step}
            assert _unlike("x", said, true, 0.002) == [
                f"x says {name} {said[name]:.4f}, computed again it is {true[name]:.4f}"
            ]
    assert _unlike("x", true, true, 0.002) == []
    assert not np.isnan(list(true.values())).any()


def test_fetch_model_brings_the_file_of_each_revision(tmp_path: Path) -> None:
    pytest.importorskip("dvc")
    root, out = tmp_path / "repository", tmp_path / "out"
    commits = repository_with_models(root)
    out.mkdir()
    for text, commit in commits.items():
        path = fetch_model(Revision(root, commit), out)
        assert path is not None
        assert path.read_text() == text
        again = fetch_model(Revision(root, commit), out)  # of a branch without a commit of its own
        assert again == path
    git("checkout", "--quiet", "--orphan", "empty", root=root)
    git("rm", "--quiet", "--cached", "dvc.lock", root=root)
    commit_all(root, "none", "params.yaml")
    assert fetch_model(Revision(root, "empty"), out) is None


def test_fetch_model_of_a_project_in_a_folder_of_a_repository_brings_it(tmp_path: Path) -> None:
    pytest.importorskip("dvc")
    git("init", "--quiet", "--initial-branch=dev", root=tmp_path)
    commit = repository_with_models(tmp_path / "tiles ü", init=False)["one"]
    path = fetch_model(Revision(tmp_path / "tiles ü", commit), tmp_path)
    assert path is not None
    assert path.read_text() == "one"


def test_fetch_model_that_was_not_pushed_names_the_fix(tmp_path: Path) -> None:
    pytest.importorskip("dvc")
    root = tmp_path / "repository"
    commit = repository_with_models(root)["one"]
    for path in (root / ".dvc/cache/files").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(DeliveryError, match=r"is not to be had: .* `dvc push` it"):
        fetch_model(Revision(root, commit), tmp_path)


def repository_with_models(root: Path, *, init: bool = True) -> dict[str, str]:
    """Make a DVC repository of two commits; return {content of the model file: commit}."""
    from hashlib import md5

    root.mkdir()
    if init:
        git("init", "--quiet", "--initial-branch=dev", root=root)
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("")
    (root / ".dvc/.gitignore").write_text("/cache\n/tmp\n")
    (root / "params.yaml").write_text("{}\n")
    (root / "dvc.yaml").write_text("stages: {export: {cmd: 'true', outs: [runs/model.onnx]}}\n")
    commits = {}
    for text in ("one", "two"):
        digest = md5(text.encode(), usedforsecurity=False).hexdigest()
        held = root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
        held.parent.mkdir(parents=True)
        held.write_text(text)
        (root / "dvc.lock").write_text(
            "schema: '2.0'\nstages:\n  export:\n    cmd: 'true'\n    outs:\n"
            f"    - path: runs/model.onnx\n      hash: md5\n      md5: {digest}\n      size: 3\n"
        )
        commit_all(root, text)
        commits[text] = git("rev-parse", "HEAD", root=root)
    return commits


def commit_all(root: Path, message: str, *names: str) -> None:
    git("add", *(names or ("--all",)), root=root)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git(*who, "commit", "--quiet", "--message", message, root=root)


PROJECT = Path(__file__).parents[2]
SCRIPT = PROJECT / ".github/scripts/auto-merge"


def test_gate_names_parameters_that_there_are() -> None:
    flat = flatten(Revision(PROJECT).mapping("params.yaml"))
    assert [
        one for one in FIXED if not any(f"{name}.".startswith(f"{one}.") for name in flat)
    ] == []


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone of a forge that has `dev` and, a commit later, `exp-1`; DVC has nothing to do."""
    remote, root, programs = (tmp_path / name for name in ("forge.git", "job", "programs"))
    git("init", "--quiet", "--bare", str(remote), root=tmp_path)
    git("init", "--quiet", "--initial-branch=dev", str(root), root=tmp_path)
    git("remote", "add", "origin", str(remote), root=root)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for branch in ("dev", "exp-1"):
        git(*who, "commit", "--quiet", "--allow-empty", "--message", branch, root=root)
        git("push", "--quiet", "origin", f"HEAD:refs/heads/{branch}", root=root)
    programs.mkdir()
    (programs / "dvc").write_text("#!/bin/sh\n")
    (programs / "dvc").chmod(0o755)
    return root


@pytest.mark.parametrize(
    ("said", "code", "expected", "merged"),
    [
        ("gate: merge", 0, 0, True),
        ("gate: not merged without a person", 1, 0, False),
        ("", 1, 2, False),  # Python that cannot import
        ("", 0, 2, False),
        ("gate: merge", 1, 2, False),
        ("", 2, 2, False),
        ("", 70, 70, False),
    ],
)
def test_auto_merge_takes_the_words_of_the_gate_alone_for_a_verdict(
    clone: Path, said: str, code: int, expected: int, merged: bool
) -> None:
    programs, remote = clone.parent / "programs", clone.parent / "forge.git"
    program = programs / "magtiles-seg"
    program.write_text(f'#!/bin/sh\necho "{said}"\nexit {code}\n')
    program.chmod(0o755)
    before = git("rev-parse", "dev", root=remote)
    with served(ForgeApi(remote=remote)) as api:
        environ = {**api.environ, "PATH": f"{programs}:/usr/bin:/bin", "HOME": str(clone.parent)}
        environ |= {"BRANCH": "exp-1", "NO_PROXY": "127.0.0.1"}
        propose = [str(SCRIPT.parent / "forge"), "propose", "exp-1", "dev", "An experiment"]
        subprocess.run(propose, env=environ, check=True)
        done = subprocess.run([SCRIPT], cwd=clone, env=environ, stdout=subprocess.PIPE, text=True)
        assert api.started == (["2-deploy-dev.yml dev"] if merged else [])
    assert done.returncode == expected, done.stdout
    assert (git("rev-parse", "dev", root=remote) != before) == merged
    assert ("came to no verdict" in done.stdout) == (expected != 0)


def test_auto_merge_of_a_branch_that_is_gone_says_so(clone: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(clone.parent), "BRANCH": "exp-gone"}
    done = subprocess.run([SCRIPT], cwd=clone, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("::notice::exp-gone is at origin no more")


def test_auto_merge_judges_again_where_the_base_has_moved_on_meanwhile(clone: Path) -> None:
    programs, remote = clone.parent / "programs", clone.parent / "forge.git"
    asked = clone.parent / "asked"
    move = f"git -C {remote} update-ref refs/heads/dev $(git -C {remote} rev-parse exp-2)"
    (programs / "magtiles-seg").write_text(
        f"#!/bin/sh\ngit rev-parse HEAD >> {asked}\n[ $(wc -l < {asked}) -gt 1 ] || {move}\n"
        "echo 'gate: not merged without a person'\nexit 1\n"
    )
    (programs / "magtiles-seg").chmod(0o755)
    git("push", "--quiet", "origin", "exp-2", root=other(clone))
    before = git("rev-parse", "dev", root=remote)
    environ = {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(clone.parent), "BRANCH": "exp-1"}
    subprocess.run([SCRIPT], cwd=clone, env=environ, check=True, stdout=subprocess.DEVNULL)
    assert asked.read_text().split() == [before, git("rev-parse", "exp-2", root=remote)]


def other(clone: Path) -> Path:
    """Return the clone with another experiment, `exp-2`."""
    git("checkout", "--quiet", "-b", "exp-2", root=clone)
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    git(*who, "commit", "--quiet", "--allow-empty", "--message", "exp-2", root=clone)
    return clone


def test_judge_asks_no_experiment_for_what_the_base_has_changed_since(branches: Branches) -> None:
    new = scored(NEW)
    git("checkout", "--quiet", "dev", root=branches.root)
    (branches.root / "code.py").write_text("more\n")
    branches.commit("code")
    git("checkout", "--quiet", "exp", root=branches.root)
    branches.write(new.result)
    assert branches.judge(new).merge


def test_judge_holds_the_data_of_an_experiment_against_what_is_here(branches: Branches) -> None:
    branches.write(scored(NEW).result)
    branches.commit("exp")
    git("checkout", "--quiet", "dev", root=branches.root)
    (branches.root / "dvc.lock").write_text(LOCK.format(data="here"))  # after `dvc repro`
    base, exp = (Revision(branches.root, name) for name in ("dev", "exp"))
    said = "data has the hash d at exp"
    assert said in str(judge(base, exp, SPLIT, lambda state: pytest.fail(str(state))))
