"""The examples: what the gallery asks of a demo, the weights they start from, the command lines.

The demos themselves run when the documentation is built.
"""

import argparse
import csv
import re
import runpy
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import segyio
import torch
from scripts import smaller
from volumes import write_volumes

import deepinv_jitter as dj

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
DEMOS = sorted(EXAMPLES.rglob("demo_*.py"))
CHAPTERS = sorted({demo.parent for demo in DEMOS})
WEIGHTS = Path(dj.__file__).parent / "models" / "weights"
TRAIN = runpy.run_path(str(EXAMPLES / "weights" / "train.py"))


@pytest.mark.parametrize("demo", DEMOS, ids=lambda path: path.stem)
def test_a_demo_is_short_and_ends_in_a_picture(demo):
    text = demo.read_text()
    assert len(text.splitlines()) <= 150
    assert text.rstrip().endswith("plt.show()")
    assert text.count("torch.load(") == text.count("weights_only=True")
    outside = not re.search(r"__file__|sys\.argv|examples/.*\.pt", text)
    assert outside, "a demo is downloaded alone: its weights come from dj.demo_network"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=lambda path: path.name)
def test_a_chapter_has_a_heading(chapter):
    title, underline, *_ = (chapter / "README.rst").read_text().splitlines()
    assert set(underline) == {"-"} and len(underline) == len(title), "below that of the gallery"


def test_weights_are_those_of_the_script():
    files = {path.name for path in WEIGHTS.glob("*.pt")}
    assert files == {f"{name}.pt" for name in TRAIN["NAMES"]}


@pytest.mark.parametrize("name", TRAIN["NAMES"])
def test_weights_fit_their_network_and_have_a_log(name):
    path = WEIGHTS / f"{name}.pt"
    weights = torch.load(path, weights_only=True)
    model = dj.demo_network(name)
    assert not model.training
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    assert all(value.isfinite().all() for value in weights.values())
    with open(path.with_suffix(".csv")) as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == [str(k + 1) for k in range(TRAIN["EPOCHS"])]


def test_weights_are_small_enough_for_a_package():
    assert sum(path.stat().st_size for path in WEIGHTS.glob("*.pt")) < 1e6


def test_an_unknown_demo_network_is_refused_by_name():
    with pytest.raises(ValueError, match="name must be one of .*mri_mse.*got 'mri'"):
        dj.demo_network("mri")


def fastmri_folder(folder):
    write_volumes(folder, 3)
    return ["--data", str(folder)]


def survey(folder):
    spec = segyio.spec()
    spec.samples, spec.tracecount, spec.format = range(48), 72, 5
    with segyio.create(folder / "survey.sgy", spec) as file:
        file.trace.raw[:] = np.random.default_rng(0).standard_normal((72, 48)).astype(np.float32)
    np.savetxt(folder / "wavelet.txt", dj.ricker(9, a=1.0).numpy())
    arguments = ["--data", str(folder / "survey.sgy"), "--direction", "trace"]
    return [*arguments, "--wavelet", str(folder / "wavelet.txt")]


COMPARISONS = {
    "mri": lambda folder: [],
    "mri, fastMRI files": fastmri_folder,
    "seismic": lambda folder: [],
    "seismic, SEG-Y": survey,
}


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPARISONS)
def test_the_comparisons_on_the_command_line(tmp_path, monkeypatch, capsys, case):
    data = tmp_path / "data"
    data.mkdir()
    arguments = COMPARISONS[case](data)
    arguments += ["--size", "24", "24", "--steps", "5", "--test", "1", "--attacks", "quick"]
    script = EXAMPLES / case.split(",")[0] / "compare.py"
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments, "--out", str(tmp_path / "out")])
    evaluate = dj.evaluate_robustness

    def few(*args, **options):
        if "," in case:  # with files, which change the data: the searches are those without them
            ball = dj.L2Ball(1.0, relative_to=options.pop("relative_to"))
            options["attacks"] = [dj.RandomAttack(ball, samples=1, checks=False)]
        return evaluate(*args, **options, draws=2)

    monkeypatch.setattr(dj, "evaluate_robustness", few)
    runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr()
    assert (
        "Plan: 3 networks" in printed.out and "SPGD jittering against MSE training" in printed.out
    )
    assert f"peak: {2.0 if 'seismic' in case else 1.0}" in printed.out
    assert "peak_exceeded" not in printed.out
    for name in ("MSE training", "SPGD jittering", "noise and attacks"):
        assert f"{name}: 100%" in printed.err
    for file in (
        "comparison.csv",
        "images.png",
        "curves.pdf",
        "mse.pt",
        "jittered.pt",
        "robust.pt",
    ):
        assert (tmp_path / "out" / file).stat().st_size > 100, file


class Reached(Exception):
    """The place in a script that a test is about."""


def reached(*args, **kwargs):
    raise Reached


def run_compare(monkeypatch, problem, *arguments):
    monkeypatch.setattr(sys, "argv", ["compare.py", *arguments])
    runpy.run_path(str(EXAMPLES / problem / "compare.py"), run_name="__main__")


@pytest.mark.parametrize("steps, done", [("1", 1), ("3", 3), ("7", 5)])
def test_a_comparison_takes_the_steps_of_its_plan(tmp_path, monkeypatch, capsys, steps, done):
    write_volumes(tmp_path, 1)
    monkeypatch.setattr(dj, "evaluate_robustness", reached)
    arguments = ["--data", str(tmp_path), "--size", "24", "24", "--steps", steps]
    with pytest.raises(Reached):
        run_compare(monkeypatch, "mri", *arguments, "--out", str(tmp_path / "out"))
    printed = capsys.readouterr()
    assert f"trained on, {done} steps each" in " ".join(printed.out.split())
    assert "SPGD jittering: 100%" in printed.err and f" {done}/{done} " in printed.err


@pytest.mark.parametrize("option", ["--steps", "--test"])
def test_a_comparison_of_nothing_is_refused_at_once(monkeypatch, capsys, option):
    monkeypatch.setattr(dj, "evaluate_robustness", reached)
    with pytest.raises(SystemExit):
        run_compare(monkeypatch, "mri", "--size", "24", "24", "--steps", "5", option, "0")
    assert f"argument {option}: must be at least 1, got 0" in capsys.readouterr().err


def test_data_for_a_comparison_must_give_two_samples(tmp_path, monkeypatch):
    survey(tmp_path)
    arguments = ["--data", str(tmp_path / "survey.sgy"), "--direction", "trace"]
    with pytest.raises(SystemExit, match="--data must give at least 2 samples of --size, got 1"):
        run_compare(monkeypatch, "seismic", *arguments, "--size", "48", "40")


TEXTS = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *EXAMPLES.glob("*/compare.py")]
COMMANDS = {
    command
    for text in TEXTS
    for command in re.findall(r"python examples/(\w+/compare\.py[^`\n\"]*)", text.read_text())
}


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_of_the_pages_are_understood(command, monkeypatch):
    script, *arguments = command.split()
    parse = argparse.ArgumentParser.parse_args

    def parsed(*args):
        parse(*args)
        raise Reached

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parsed)
    with pytest.raises(Reached):
        run_compare(monkeypatch, Path(script).parent, *arguments)


def test_the_snippet_of_the_readme_is_a_script_that_runs(tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    script = (EXAMPLES / "mri" / "three_networks.py").read_text()
    readme = (EXAMPLES.parent / "README.md").read_text()
    assert re.search(r"```python\n(.*?)```", readme, re.DOTALL)[1] == script
    assert sum(map(bool, script.splitlines())) <= 25
    sizes = {
        "size = (64, 64)": "size = (24, 24)",
        '"resolution": 3': '"resolution": 8',
        "spacing=2": "spacing=7",
        "epochs=60": "epochs=1",
        "epsilons=[0.5, 1]": "epsilons=1, attacks='quick', draws=2",
    }
    script = smaller(script, sizes)
    exec(compile(script, "three_networks.py", "exec"), {"__name__": "__main__"})
    table = capsys.readouterr().out
    assert "3 networks, 2 samples" in table and "noise and attacks against MSE" in table
    for file in ("curves.png", "images.png"):
        assert (tmp_path / file).stat().st_size > 1000
    assert len(list(tmp_path.iterdir())) == 2
