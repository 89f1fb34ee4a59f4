"""Several networks at once: one table, one picture, the numbers of single calls."""

import csv
import io
import math
import re
import warnings

import pytest
import torch
from deepinv.loss.metric import MAE
from evaluation_cases import ERROR, PROBLEMS, assert_same_values, evaluate, mri, perturbed, points
from properties import assert_global_rng_untouched

import deepinv_jitter as dj
from deepinv_jitter.evaluation.results import Condition
from deepinv_jitter.evaluation.tables import Cell, Table


def networks(problem):
    """Three of different quality."""
    model, x, physics, epsilons, shift = problem()
    models = {"first": model, "second & third": perturbed(problem()[0])}
    models["a much longer name than others have, of many words"] = problem()[0]
    return models, x, physics, epsilons, shift


@pytest.fixture(scope="module", params=PROBLEMS, ids=lambda p: p.__name__)
def several(request):
    models, x, physics, epsilons, shift = networks(request.param)
    kwargs = {"epsilons": epsilons, "shifts": {"shift": shift}}
    return evaluate(models, [x[:3], x[3:]], physics, **kwargs)


# The numbers are those of single calls


@pytest.mark.parametrize("problem", PROBLEMS)
def test_together_is_one_by_one_bit_for_bit(problem):
    models, x, physics, epsilons, shift = networks(problem)
    dj.jitter(models["first"], 0.1).train()
    kwargs = {"epsilons": epsilons, "shifts": shift}
    with assert_global_rng_untouched():
        together = evaluate(models, [x[:3], x[3:]], physics, **kwargs)
    assert list(together.reports) == list(models) and models["first"].training
    alone = {n: evaluate(m, [x[:3], x[3:]], physics, **kwargs) for n, m in models.items()}
    for name, report in alone.items():
        assert_same_values(together.reports[name], report)
        assert together.reports[name].flags == report.flags
        assert together.reports[name].description == report.description
    joined = dj.RobustnessComparison(alone)
    assert joined.table("csv") == together.table("csv")
    assert joined.table() == together.table()


def test_batches_are_asked_for_once():
    """So that all networks see the same ones, whatever a loader does."""
    models, x, physics, epsilons, _ = networks(points)
    comparison = evaluate(models, (torch.randn(4, 2) for _ in range(2)), physics)
    assert len({tuple(r.digests) for r in comparison.reports.values()}) == 1


def test_networks_that_join_later_are_the_only_ones_that_are_measured(tmp_path):
    models, x, physics, epsilons, _ = networks(points)
    first, second, third = models
    state = tmp_path / "results"
    kwargs = {"epsilons": epsilons, "state": state}
    evaluate({n: models[n] for n in (first, second)}, [x], physics, **kwargs)
    assert sorted(file.name for file in state.iterdir()) == ["first.pt", "second _ third.pt"]
    whole = evaluate(models, [x], physics, epsilons)
    calls = []
    for name in (first, second):
        models[name].register_forward_hook(lambda *_: calls.append(1))
    joined = evaluate(models, [x], physics, **kwargs)
    assert len(calls) == 2  # a look at each, whether it is still the same
    for name in models:
        assert_same_values(joined.reports[name], whole.reports[name])


@pytest.mark.parametrize("fuse", [2, 9, 15, 24])
def test_several_resume_bit_for_bit(fuse, tmp_path):
    models, x, physics, epsilons, shift = networks(points)

    def interrupted(model, calls):
        def call(y, physics):
            calls.append(1)
            if len(calls) == fuse:
                raise KeyboardInterrupt
            return type(model).forward(model, y, physics)

        return call

    kwargs = {"epsilons": epsilons, "shifts": shift, "state": tmp_path / "s"}
    calls = []
    for model in models.values():
        model.forward = interrupted(model, calls)
    with pytest.raises(KeyboardInterrupt):
        evaluate(models, [x[:4], x[4:]], physics, **kwargs)
    for model in models.values():
        del model.forward
    resumed = evaluate(models, [x[:4], x[4:]], physics, **kwargs)
    del kwargs["state"]
    whole = evaluate(models, [x[:4], x[4:]], physics, **kwargs)
    for name in models:
        assert_same_values(resumed.reports[name], whole.reports[name])


STATES = [
    ({"a/b": 0, "a_b": 1}, "new", "names of models must differ in their letters"),
    ({"a": 0, "A": 1}, "new", "names of models must differ in their letters"),
    ({"a": 0}, "a/b/new", "state must be a folder .* or a new one in a folder that"),
    ({"a": 0}, "file", "state must be a folder for several networks"),
    (0, "folder", "state must be a file for one network, got the folder"),
]


@pytest.mark.parametrize("names, state, message", STATES)
def test_where_states_cannot_be(names, state, message, tmp_path):
    model, x, physics, _, _ = points()
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    models = dict.fromkeys(names, model) if isinstance(names, dict) else model
    with pytest.raises(ValueError, match=message):
        evaluate(models, [x], physics, state=tmp_path / state)


def test_one_bar_for_all(capsys):
    models, x, physics, _, _ = networks(points)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(models, [x[:3], x[3:]], physics)
        assert capsys.readouterr() == ("", "")
        evaluate(models, [x[:3], x[3:]], physics, verbose=True)
    shown = capsys.readouterr()
    # 3 networks, 2 batches, 3 conditions, and the time that remains
    assert shown.out == "" and "18/18" in shown.err
    assert shown.err.count("\n") == 1 and shown.err.count("\r") < 5
    assert re.search(r"0/18 \[00:00<\?", shown.err)


def test_the_default_path_is_silent():
    model, x, physics, _, _ = mri()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = dj.evaluate_robustness(
            model, [x[:2]], physics, epsilons=[0.5], attacks="quick", verbose=False
        )
        report.table()


# The table


def rows_of(text):
    """Cells of each network, from a table of blocks."""
    found = {}
    for line in text.splitlines():
        name, *cells = re.split(r" {2,}", line)
        if name in ("a", "b", "c"):
            found.setdefault(name, []).extend(cells)
    return found


def synthetic(best=-math.inf, conditions=("clean",), **networks):
    """A comparison of these values, one row for each condition."""
    reports = {}
    for name, values in networks.items():
        values = torch.as_tensor(values, dtype=torch.float64)
        values = values.expand(len(conditions), *values.shape[-1:])
        reports[name] = dj.RobustnessReport(
            conditions=[Condition(label) for label in conditions],
            values={label: {"m": v} for label, v in zip(conditions, values, strict=True)},
            metrics={"m": best},
            description={"model": name, "seed": "0"},
            digests=[str(i) for i in range(values.shape[-1])],
            model_in_train_mode=False,
            seconds=0.0,
        )
    return dj.RobustnessComparison(reports)


NUMBERS = torch.arange(10.0)
STANDINGS = [
    # a, b, c and their marks, if lower is better
    (NUMBERS, NUMBERS + 1, NUMBERS + 2, "*", "", ""),
    (NUMBERS, NUMBERS, NUMBERS + 2, "*", "~", ""),
    # the mean of b is better, but not of each pair
    (NUMBERS, NUMBERS.flip(0) - 0.1, NUMBERS + 20, "~", "*", ""),
    (NUMBERS * math.nan, NUMBERS, NUMBERS + 2, "", "*", ""),
    (NUMBERS * math.nan,) * 3 + ("",) * 3,
    # a network that diverges
    (NUMBERS + math.inf, NUMBERS, NUMBERS + 2, "", "*", ""),
]


@pytest.mark.parametrize("a, b, c, first, second, third", STANDINGS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_best_is_marked_and_what_is_not_told_apart(a, b, c, first, second, third, sign):
    comparison = synthetic(-sign * math.inf, a=sign * a, b=sign * b, c=sign * c)
    text = comparison.table()
    rows = csv.DictReader(io.StringIO(comparison.table("csv")))
    standing = {"best": "*", "undecided": "~", "": ""}
    for row, mark in zip(rows, (first, second, third), strict=True):
        assert standing[row["standing"]] == mark
        (cell,) = rows_of(text)[row["network"]]
        assert cell[-1:] == mark or (not mark and cell[-1:] in "]nf")
    markdown, latex = comparison.table("markdown"), comparison.to_latex()
    marks = first + second + third
    assert len(re.findall(r"\*\*-?[\d.]+ \[", markdown)) == marks.count("*")
    assert latex.count(r"\textbf{") == marks.count("*")
    assert latex.count(r"\underline{") == marks.count("~")


def test_few_samples_are_never_told_apart():
    few = synthetic(a=NUMBERS[:5], b=NUMBERS[:5] + 10)
    assert rows_of(few.table())["b"][0].endswith("~")
    assert few["clean", "m"]["verdict"] == "undecided"


def test_differences_are_shown_with_their_verdict():
    comparison = synthetic(a=NUMBERS + 0.5, b=NUMBERS, c=NUMBERS.flip(0))
    assert "difference to" not in comparison.table()
    table = comparison.table(compare_to="b")
    assert "m, lower is better: difference to b, paired [95 % interval]" in table
    cells = rows_of(table)
    assert len(cells["b"]) == 1 and cells["a"][1] == "+0.50 [0.50, 0.50] worse"
    assert cells["c"][1].endswith("undecided")
    assert "a against b: worse clean (m +0.5)" in table.splitlines()
    bound = dj.RobustnessComparison(comparison.reports, compare_to="b")
    assert bound.table() == table == str(bound)
    (row,) = (row for row in bound.rows if row["network"] == "a")
    assert row["difference"] == 0.5 and row["verdict"] == "worse"
    assert bound["a", "clean", "m"] == row
    with pytest.raises(KeyError):
        bound["clean", "m"]  # of which network?


def test_tables_are_narrow(several):
    for compare_to in (None, "second & third"):
        table = several.table(metrics="all", compare_to=compare_to)
        assert max(map(len, table.splitlines())) <= 100
        assert all(line == line.rstrip() for line in table.splitlines())
    # every network and condition is there, in words
    plain = " ".join(table.split())
    for name in several.reports:
        assert name in plain or name.split(",")[0] in plain
    assert plain.count("shift") >= 2 and "random" in plain and "average case" not in plain


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 12])
@pytest.mark.parametrize("width", [3, 20, 30])
def test_columns_that_do_not_fit_go_below(count, width):
    row = [Cell("network " * 6), *(Cell("9" * width, "best") for _ in range(count))]
    heads = ["", *(f"condition {i}" for i in range(count))]
    text = Table("A title", heads, [row, row]).text()
    assert max(map(len, text.splitlines())) <= 100
    assert text.count("9" * width + "*") == 2 * count
    sizes = [b.splitlines()[-1].count("9" * width) for b in text.split("\n\n")]
    assert max(sizes, default=0) - min(sizes, default=0) <= 1
    for i in range(count):
        assert text.count(f"condition {i}\n") + text.count(f"condition {i} ") == 1


def test_conditions_can_be_chosen(several):
    table = several.table(conditions=["clean", "shift"])
    assert "random" not in table.split("The radii")[0] and "shift" in table
    with pytest.raises(ValueError, match="conditions must be among .* got 'sunny'"):
        several.table(conditions=["sunny"])
    with pytest.raises(ValueError, match="compare_to must be one of .* got 'MSE'"):
        several.to_latex(compare_to="MSE")
    with pytest.raises(ValueError, match="format must be one of .* got 'html'"):
        several.table("html")
    with pytest.raises(ValueError, match="metrics must be 'all' or among"):
        several.table(metrics=["sharpness"])


def test_conditions_are_called_as_the_tables_call_them():
    model, x, physics, _, _ = mri()
    options = {"attacks": "quick", "relative_to": "noise"}
    both = evaluate({"a": model, "b": mri()[0]}, [x[:2]], physics, [0.5, 1], **options)
    label, shown = "worst case, eps=0.5", "worst case, 0.5 x noise"
    assert shown in both.reports["a"].table()
    for name in (shown, "worst case\n0.5 x noise", "worst case 0.5 x noise"):
        for made in (both.table, both.to_latex):
            assert made(conditions=[name]) == made(conditions=[label])
        assert both["b", name, "PSNR"] == both["b", label, "PSNR"] == both[name, "PSNR"]
    accepted = "'worst case, eps=1'.*'worst case, 1 x noise'.* got 'worst case, eps=2'"
    for ask in (both.table, both.to_latex):
        with pytest.raises(ValueError, match=f"conditions must be among .*{accepted}"):
            ask(conditions=["worst case, eps=2"])
    with pytest.raises(KeyError, match=accepted):
        both["b", "worst case, eps=2", "PSNR"]


def test_csv_of_the_table_and_of_the_values(several, tmp_path):
    rows = list(csv.DictReader(io.StringIO(several.table("csv", compare_to="first"))))
    for row in rows:
        report = several.reports[row["network"]]
        values = report.values[row["condition"]][row["metric"]]
        assert float(row["mean"]) == values.mean().item()
        assert (row["verdict"] == "") == (row["network"] == "first")
    known = {(row["metric"], row["network"], row["condition"]) for row in rows}
    assert len(known) == len(rows)
    several.to_csv(tmp_path / "values.csv")
    with open(tmp_path / "values.csv", newline="") as file:
        records = list(csv.DictReader(file))
    for name, report in several.reports.items():
        mine = [row for row in records if row["network"] == name]
        assert len(mine) == len(report.records)
        for row, record in zip(mine, report.records, strict=True):
            assert float(row[ERROR]) == record[ERROR]


def test_latex_is_well_formed(several, tmp_path):
    text = several.to_latex(tmp_path / "t.tex", metrics="all", compare_to="first")
    assert (tmp_path / "t.tex").read_text() == text
    tables = re.findall(r"\\begin\{tabular\}\{(l r*|lr*)\}(.*?)\\end\{tabular\}", text, re.S)
    metrics = several.reports["first"].metrics
    assert len(tables) == 2 * len(metrics)
    for columns, body in tables:
        lines = [line.strip() for line in body.strip().splitlines()]
        assert lines[0] == r"\toprule" and lines[-1] == r"\bottomrule"
        for line in lines:
            if not line.endswith("rule"):
                assert line.endswith(r"\\")
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1
                assert line.count("{") == line.count("}")
                # what would be a command, a comment or mathematics
                bare = re.sub(r"\\(textbf|underline|text\w+)\{|\\[&%$#_{}]", "", line)
                assert not re.search(r"[%#_^~]", bare.replace("$-$", ""))
        assert r"second \& third" in body


def test_latex_around_the_tables_is_comments():
    model, x, physics, epsilons, _ = points()
    attack = dj.FrankWolfeAttack(dj.L2Ball(1.0), objective=MAE())
    report = evaluate({"two\nlines": model}, [x], physics, epsilons, attacks=attack)
    text = report.to_latex(compare_to="two\nlines")
    outside = re.sub(r"\\begin.*?\\end\{tabular\}", "%", text, flags=re.S)
    assert all(line.startswith("%") for line in outside.splitlines())


# What may stand side by side


def test_reports_must_fit_each_other():
    model, x, physics, _, _ = points()
    report = evaluate(model, [x], physics)
    other = evaluate(model, [x], physics, metrics={"mae": MAE()})
    with pytest.raises(ValueError, match="'b' and 'a' differ in metrics, peak: .*same arg"):
        dj.RobustnessComparison({"a": report, "b": other})
    fewer = evaluate(model, [x], physics, pictures=1)
    assert dj.RobustnessComparison({"a": report, "b": fewer})


REFUSED = [
    ({}, None, ValueError, "reports must hold at least one report, got none"),
    ([1], None, TypeError, "reports must be a dictionary of names .* got list"),
    ({"a": 1}, None, TypeError, "names and RobustnessReports, got int for 'a'"),
    ({1: "report"}, None, TypeError, "got RobustnessReport for 1"),
    ({"a": "report"}, "b", ValueError, "compare_to must be one of .'a'., got 'b'"),
]


@pytest.mark.parametrize("reports, compare_to, error, message", REFUSED)
def test_refused(reports, compare_to, error, message):
    report = synthetic(a=NUMBERS).reports["a"]
    if isinstance(reports, dict):
        reports = {k: report if v == "report" else v for k, v in reports.items()}
    with pytest.raises(error, match=message):
        dj.RobustnessComparison(reports, compare_to)


def test_networks_of_other_shapes_are_refused_before_work_is_lost():
    models, x, physics, _, _ = networks(points)
    models["flat"] = torch.nn.Flatten(0)
    with pytest.raises(TypeError):
        evaluate(models, [x], physics)


def test_plot_of_several(several, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure = several.plot(tmp_path / "curves.svg")
    (ax,) = figure.axes
    assert len(ax.lines) == 2 * len(several.reports)
    assert len({line.get_color() for line in ax.lines}) == len(several.reports)
    assert len({line.get_marker() for line in ax.lines}) == len(several.reports)
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert names == [*several.reports, "worst case", "random, equal norm"]
    assert "<text" in (tmp_path / "curves.svg").read_text()
    # The intervals of the worst case, side by side: the network's means lie within
    worst = ax.lines[1::2]
    bars = [bar.get_segments() for bar in ax.collections]
    places = [segment[0][0] for segments in bars for segment in segments]
    assert len(bars) == len(worst) and len(set(places)) == len(places)
    for line, segments in zip(worst, bars, strict=True):
        for x, y, ((left, low), (right, high)) in zip(*line.get_data(), segments):
            assert left == right == pytest.approx(x, abs=0.02 * max(line.get_xdata()))
            assert low <= y <= high
    plt.close("all")
