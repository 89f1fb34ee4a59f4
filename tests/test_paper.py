"""The paper's tables and figures at their smallest size: they run, resume and render again."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

sys.path.insert(0, str(Path(__file__).parent.parent / "examples" / "paper"))

import intervals
import methods
import paper
import problems
import recipe
import run
import runs
import tables
import verdicts
from volumes import write_volumes

PUBLISHED = Path(__file__).parent.parent / "docs" / "results"
SEEDS = 5
RECORD = {
    "schema", "run", "preset", "settings", "data", "versions", "device", "seconds", "parameters",
    "stepsize", "samples", "conditions", "elsewhere", "risks",
}  # fmt: skip


def command(out, *arguments, seeds=1):
    options = ["--preset", "smoke", "--seeds", str(seeds), "--out", str(out), "--quiet"]
    run.main([*arguments, *options])


def pages(folder):
    return {path.name: path.read_text() for path in folder.glob("*.md")}


def records_of(folder):
    """Beside them are files of what was measured otherwise."""
    files = (folder / "runs").glob("*.json")
    return [path for path in files if path.stem.split("-")[0] in problems.PROBLEMS]


def check_record(record):
    assert set(record) == RECORD and record["schema"] == runs.SCHEMA
    assert runs.Run(**record["run"]).problem in problems.PROBLEMS
    count = len(record["samples"])
    for condition in record["conditions"].values():
        for values in condition["metrics"].values():
            assert len(values) == count and all(map(math.isfinite, values))
    for values in record["elsewhere"].values():
        assert values and all(map(math.isfinite, values))


@pytest.mark.slow
def test_every_table_and_figure(tmp_path, monkeypatch):
    for problem in problems.PROBLEMS.values():
        weak = problem.paper_attack | {"steps": 2}
        monkeypatch.setattr(problem, "paper_attack", weak)
    strong = property(lambda self: self.attack_of_the_paper(self.settings.radius))
    monkeypatch.setattr(problems.Problem, "attack", strong)
    monkeypatch.setattr(runs, "DRAWS", 2)
    monkeypatch.setattr(recipe, "SCREENED", recipe.SCREENED[-1:])
    command(tmp_path, "all")
    folder = tmp_path / "smoke"
    for target in run.TARGETS:
        suffix = "png" if target.startswith("figure") else "md"
        assert (folder / f"{target}.{suffix}").stat().st_size > 200, target
    for path in records_of(folder):
        check_record(json.loads(path.read_text()))
        assert len(list((folder / "weights").glob("*.tmp"))) == 0

    # Again, from the files alone: nothing may be trained or evaluated
    first = pages(folder)
    monkeypatch.setattr(runs, "fit", None)
    monkeypatch.setattr(runs.dj, "evaluate_robustness", None)
    for target in [*tables.TABLES, "table6", "claims", "sigma", "budgets"]:
        command(tmp_path, target)
    assert pages(folder) == first

    # Pages of chosen cases hold these alone, and what is about others is left out
    asked, record = set(), runs.Archive.record
    monkeypatch.setattr(
        runs.Archive, "record", lambda self, run: asked.add(run) or record(self, run)
    )
    for chosen, left_out in (("points-gd", "table1"), ("mri-pgd", "table2")):
        for page in [*folder.glob("*.md"), *folder.glob("*.png")]:
            page.unlink()
        asked.clear()
        command(tmp_path, "all", "--cases", chosen)
        found = {f"{run.problem}-{run.algorithm}" for run in asked}
        assert found - {"mri-reference"} == {chosen}
        assert (folder / "recipe.md").exists() and not (folder / f"{left_out}.md").exists()


def test_a_run_that_was_killed_goes_on_from_its_weights(tmp_path, monkeypatch):
    archive = runs.Archive(tmp_path, "smoke", verbose=False)
    wanted = runs.Run("points", "gd", "jitter")
    evaluate = runs.dj.evaluate_robustness

    def killed(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runs.dj, "evaluate_robustness", killed)
    with pytest.raises(KeyboardInterrupt):
        archive.record(wanted)
    assert not list(archive.folder.rglob("*.json"))
    monkeypatch.setattr(runs.dj, "evaluate_robustness", evaluate)
    monkeypatch.setattr(runs, "fit", None)
    resumed = archive.record(wanted)
    monkeypatch.undo()
    fresh = runs.Archive(tmp_path / "fresh", "smoke", verbose=False).record(wanted)
    for record in (resumed, fresh):
        check_record(record)
        del record["seconds"]
    assert resumed == fresh


@pytest.mark.parametrize("name", problems.PROBLEMS)
@pytest.mark.parametrize("algorithm", methods.ALGORITHMS)
def test_methods_start_from_the_same_network(name, algorithm):
    """For a seed they differ in what they are about alone; the paper preset builds as well."""
    problem = problems.PROBLEMS[name]("smoke")
    states = []
    for method in ("mse", "at", "input", "jitter"):
        torch.manual_seed(0)
        states.append(methods.build(problem, algorithm, method).state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[k], v) for k, v in states[0].items())
    settings = problems.PROBLEMS[name].presets["paper"]
    assert settings.iterations == 10 and settings.lr == 1e-4
    methods.build(problems.PROBLEMS[name]("paper"), algorithm, "jitter")


@pytest.mark.parametrize("name", problems.PROBLEMS)
def test_splits_do_not_overlap(name):
    if name == "points":
        pytest.skip("all truths of the toy problem are the origin")
    truths = problems.PROBLEMS[name]("cpu").truths
    seen = {split: {x.numpy().tobytes() for x in xs} for split, xs in truths.items()}
    assert not seen["validation"] & seen["test"] and not seen["train"] & seen["test"]
    assert len(seen["test"]) == len(truths["test"])


def test_step_sizes():
    problem = problems.Points("smoke")
    learned = methods.build(problem, "gd", "jitter")
    fixed = methods.build(problem, "gd", "jitter", "fixed")
    for model in (learned, fixed):
        assert methods.stepsizes(model)[0] == pytest.approx(problem.stepsize)
    trained = {
        step: methods.fit(problem, "gd", "jitter", seed=0, step=step, verbose=False)[0]
        for step in ("learned", "fixed", "normalised")
    }
    assert methods.stepsizes(trained["fixed"])[0] == pytest.approx(problem.stepsize)
    assert methods.stepsizes(trained["learned"])[0] != pytest.approx(problem.stepsize)
    # eta * sigma stays what it was at the start, up to the last step of the optimiser
    noise = trained["normalised"].fixed_point.iterator.jitter.noise
    product = noise.sigma[0] * methods.stepsizes(trained["normalised"])[0]
    expected = problem.settings.jitter["gd"].sigma[0] * problem.stepsize
    assert product == pytest.approx(expected, rel=5e-3)


def test_interval_of_one_seed_is_students():
    values = np.random.default_rng(0).normal(size=12)
    ours = intervals.crossed([values])
    theirs = ttest_1samp(values, 0).confidence_interval()
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))


def test_interval_covers_what_it_promises():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(500):
        seeds, images = rng.normal(size=(3, 1)), 2 * rng.normal(size=(1, 12))
        interval = intervals.crossed(seeds + images + rng.normal(size=(3, 12)))
        covered += interval.low < 0 < interval.high
    assert covered >= 0.94 * 500


def test_p_values_are_students():
    values = np.random.default_rng(0).normal(1, size=12)
    assert intervals.crossed([values]).p == pytest.approx(ttest_1samp(values, 0).pvalue)


@pytest.mark.parametrize(
    ("ps", "decided"),
    [
        # against 0.05 over 3, over 2 and over 1
        ([0.03, 0.016, 0.024], [True, True, True]),
        ([0.04, 0.016, 0.026], [False, True, False]),
        ([0.001, 0.017, 0.02], [True, True, True]),
        ([0.017, 0.02, 0.03], [False, False, False]),
        ([0.001, math.nan], [True, False]),
        ([], []),
    ],
)
def test_holm(ps, decided):
    assert intervals.holm([intervals.Interval(1.0, 0.5, p) for p in ps]) == decided


@pytest.mark.parametrize(
    ("mean", "decided", "expected"),
    [(1.0, True, "holds"), (-1.0, True, "does not hold"), (1.0, False, "undecided")],
)
def test_verdicts(mean, decided, expected):
    assert verdicts.verdict(intervals.Interval(mean, 0.5), decided) == expected


@pytest.mark.parametrize(("mean", "times"), [(0.5, "2"), (0.3, "4"), (0.2, "8"), (0, "> 20")])
def test_data_that_would_decide(mean, times):
    """The factor goes about as the square of what the difference lacks."""
    seeds, images = np.meshgrid([-0.1, 0.0, 0.1], np.linspace(-1, 1, 9), indexing="ij")
    assert verdicts.needed(mean + seeds + images, 0.02) == times


def test_the_papers_orderings_are_those_we_hold_against_the_runs():
    """Every claim on PSNR is what the paper's own table says, so none is made up."""
    column = {"in distribution": 0, "strong attack": 1, verdicts.SHIFT: 2}
    for claim in verdicts.CLAIMS:
        for name in claim.tables:
            better, worse = (paper.TABLES[name][m] for m in (claim.better, claim.worse))
            assert better[column[claim.column]] > worse[column[claim.column]], (name, claim)


def test_runs_with_other_data_are_not_mixed(tmp_path):
    archive = runs.Archive(tmp_path, "smoke", verbose=False)
    table = tables.Table(1, "", "points", "gd", ("mse",))
    record = archive.record(table.runs("mse", 1)[0])
    record["samples"][0] = "another"
    path = archive.folder / "runs" / f"{table.runs('mse', 1)[0].name}.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="evaluated on the same samples, .* 2 sets"):
        tables.Results(archive, table, 1)


@pytest.mark.parametrize("lost", ["weights", "runs"])
def test_files_made_with_other_settings_are_refused(tmp_path, monkeypatch, lost):
    wanted = runs.Run("points", "gd", "mse")
    archive = runs.Archive(tmp_path, "smoke", verbose=False)
    archive.record(wanted)
    for path in (archive.folder / lost).iterdir():
        path.unlink()
    preset = problems.Points.presets["smoke"]
    monkeypatch.setitem(problems.Points.presets, "smoke", replace(preset, lr=0.1))
    changed = runs.Archive(tmp_path, "smoke", verbose=False)
    with pytest.raises(ValueError, match="was made with other settings: delete it"):
        changed.record(wanted)


def test_seeds_are_checked(capsys):
    with pytest.raises(SystemExit):
        run.main(["table1", "--seeds", "0"])
    assert "--seeds must be at least 1, got 0" in capsys.readouterr().err


def test_published_records():
    """The files in docs/results have the schema, and their tables render to what is there."""
    folder = PUBLISHED / "cpu"
    published = [t for n, t in tables.TABLES.items() if (folder / f"{n}.md").exists()]
    cases = [table.case for table in published]
    archive = runs.Archive(PUBLISHED, "cpu", cases=cases, verbose=False)
    for path in records_of(folder):
        check_record(json.loads(path.read_text()))
    for table in published:
        text = (folder / f"{table.name}.md").read_text()
        assert tables.render(archive, table, SEEDS) == text, table.name
    assert verdicts.render(archive, SEEDS) == (folder / "claims.md").read_text()


def test_mri_takes_a_folder_of_fastmri_files(tmp_path):
    write_volumes(tmp_path, 5)
    problem = problems.MRI("smoke", data=str(tmp_path))
    counts = {split: len(x) for split, x in problem.truths.items()}
    assert counts == {"train": 4, "validation": 2, "test": 2}
    seen = [x.numpy().tobytes() for xs in problem.truths.values() for x in xs]
    assert len(set(seen)) == len(seen)
    assert all(x.shape[1:] == (2, 32, 32) for x in problem.truths.values())
