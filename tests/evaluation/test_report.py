"""What a report says, in numbers, words and curves."""

import copy
import csv
import math
import re
from xml.etree import ElementTree

import deepinv as dinv
import pytest
import torch
from deepinv.loss.metric import MAE
from evaluation_cases import ERROR, Scaled, evaluate, mri, noise, points

import deepinv_jitter as dj
from deepinv_jitter.attacks import FrankWolfeAttack
from deepinv_jitter.attacks.balls import L2Ball, LinfBall
from deepinv_jitter.evaluation import words
from deepinv_jitter.evaluation.results import Condition
from deepinv_jitter.evaluation.statistics import bootstrap_interval, paired

# Statistics

DRAWS = {
    "normal": torch.randn,
    "uniform": torch.rand,
    "skewed": lambda *size, generator: -torch.rand(*size, generator=generator).log(),
}
MEANS = {"normal": 0.0, "uniform": 0.5, "skewed": 1.0}


@pytest.mark.parametrize(
    "name, count, least",
    [
        ("normal", 5, 0.90),
        ("normal", 10, 0.92),
        ("normal", 50, 0.92),
        ("uniform", 10, 0.92),
        ("uniform", 50, 0.92),
        ("skewed", 20, 0.88),
        ("skewed", 100, 0.91),
    ],
)
def test_the_interval_covers_the_mean(name, count, least):
    """400 data sets; the standard error of the share is 0.011."""
    data = DRAWS[name](400, count, generator=torch.Generator().manual_seed(0))
    ends = [bootstrap_interval(values) for values in data]
    share = sum(low <= MEANS[name] <= high for low, high in ends) / len(ends)
    assert least <= share <= 0.985


@pytest.mark.parametrize("count", [6, 20])
def test_equal_networks_are_seldom_told_apart(count):
    """300 pairs of equal quality; the standard error of the share is 0.013."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(300, 2, count, generator=generator).double()
    verdicts = [paired(a, b, math.inf)["verdict"] for a, b in data]
    assert 0.01 <= 1 - verdicts.count("undecided") / len(verdicts) <= 0.09
    # and one standard deviation of the differences is seen
    better = [paired(a + 2, b, math.inf)["verdict"] for a, b in data]
    assert better.count("better") >= (0.6 if count == 6 else 0.98) * len(data)
    assert "worse" not in better


def test_interval_of_special_cases():
    assert bootstrap_interval(torch.full((9,), 2.5)) == (2.5, 2.5)
    for values in ([1.0], [1.0, math.nan], [1.0, math.inf]):
        assert all(math.isnan(end) for end in bootstrap_interval(torch.tensor(values)))
    low, high = bootstrap_interval(torch.tensor([0.0, 1.0]))
    assert (low, high) == (0.0, 1.0)


def synthetic(values, best=-math.inf):
    values = torch.as_tensor(values).double()
    return dj.RobustnessReport(
        conditions=[Condition("clean")],
        values={"clean": {"m": values}},
        metrics={"m": best},
        description={"model": str(values), "seed": "0"},
        digests=[str(i) for i in range(len(values))],
        model_in_train_mode=False,
        seconds=0.0,
    )


@pytest.mark.parametrize(
    "best, percentile, worst",
    [(-math.inf, 95.0, 100.0), (math.inf, 5.0, 0.0), (1.0, 95.0, 100.0), (99.0, 4.0, 0.0)],
)
def test_summary_looks_at_the_bad_side(best, percentile, worst):
    values = torch.arange(101)[torch.randperm(101)]
    (row,) = synthetic(values, best).summary()
    assert row["mean"] == 50 and row["low"] < 50 < row["high"]
    assert row["worst"] == worst and abs(row["percentile"] - percentile) <= 1


def test_a_value_that_is_not_a_number_counts_as_the_worst():
    (row,) = synthetic([1.0, math.nan, 3.0]).summary()
    assert math.isnan(row["worst"]) and math.isnan(row["mean"])


# difference of the two models' values, best value, verdict for the first
VERDICTS = [
    ([-1.0, -1.1, -0.9, -1.0, -1.2, -0.8], -math.inf, "better"),
    ([1.0, 1.1, 0.9, 1.0, 1.2, 0.8], -math.inf, "worse"),
    ([1.0, 1.1, 0.9, 1.0, 1.2, 0.8], math.inf, "better"),
    ([1.0, -1.1, 0.9, -1.0, 1.2, -0.8], math.inf, "undecided"),
    ([0.0] * 6, -math.inf, "undecided"),
    ([1.0] * 5, -math.inf, "undecided"),  # the same sign 5 times: 1 in 16
    ([math.nan] * 6, -math.inf, "undecided"),
]


@pytest.mark.parametrize("difference, best, verdict", VERDICTS)
def test_compare(difference, best, verdict):
    other = torch.randn(len(difference)).double()
    first, second = synthetic(other + torch.tensor(difference), best), synthetic(other, best)
    there, back = (first.compare(second)["clean", "m"], second.compare(first)["clean", "m"])
    assert there["verdict"] == verdict
    opposite = {"better": "worse", "worse": "better", "undecided": "undecided"}
    assert back["verdict"] == opposite[verdict]
    if not math.isnan(difference[0]):
        assert there["difference"] == pytest.approx(sum(difference) / len(difference))
        for a, b in (("difference", "difference"), ("low", "high"), ("high", "low")):
            assert there[a] == pytest.approx(-back[b], abs=1e-12)


def test_compare_takes_the_distance_of_the_contrast_recovery_to_1():
    over, under = [1.5] * 6, [0.9, 0.91, 0.92, 0.9, 0.9, 0.89]
    row = synthetic(under, 1.0).compare(synthetic(over, 1.0))["clean", "m"]
    assert row["verdict"] == "better" and row["difference"] < 0


def test_compare_models():
    model, x, physics, epsilons, shift = points()
    data = [torch.cat([x, -x])]
    report = evaluate(model, data, physics, epsilons, shifts=shift)
    same = report.compare(evaluate(copy.deepcopy(model), data, physics, epsilons, shifts=shift))
    assert {row["verdict"] for row in same.rows} == {"undecided"}
    assert all(row["difference"] == row["low"] == row["high"] == 0 for row in same.rows)
    assert len(same.rows) == len(report.summary())
    lazy = dj.UnfoldedGD(dj.PointMLP(), stepsize=1e-3, max_iter=1)
    other = evaluate(lazy, data, physics, epsilons, shifts=shift)
    rows = other.compare(report, ("lazy", "busy"))
    assert repr(rows) == "RobustnessComparison(['lazy', 'busy'], 14 samples)"
    assert rows["clean", ERROR] == rows["lazy", "clean", ERROR]
    assert f"lazy against busy: {rows['clean', ERROR]['verdict']} clean" in str(rows)
    for key in (("clean", "nothing"), ("nowhere", ERROR), ("busy", "clean", ERROR)):
        with pytest.raises(KeyError):
            rows[key]
    with pytest.raises(ValueError, match="names must be two, .* got .'a', 'a'"):
        report.compare(other, ("a", "a"))


class Denoising(dinv.physics.Denoising):
    """Of the same name and parameters as deepinv's."""

    def A(self, x, **kwargs):
        return 2 * x


@pytest.mark.parametrize(
    "change", ["seed", "draws", "attack", "data", "metrics", "physics", "measurements"]
)
def test_only_the_same_can_be_compared(change):
    model, x, physics, _, _ = points()
    kwargs = {"data": [x], "physics": physics}
    report = evaluate(model, **kwargs)
    other = {
        "seed": {"seed": 1},
        "draws": {"draws": 5},
        "attack": {"attacks": "quick"},
        "data": {"data": [x + 1]},
        "metrics": {"metrics": {"mae": MAE()}},
        "physics": {"physics": dinv.physics.Denoising(noise(0.2))},
        "measurements": {"physics": Denoising(noise())},
    }[change]
    with pytest.raises(ValueError, match=f"differ in {change}.*same arguments"):
        report.compare(evaluate(model, **(kwargs | other)))


def test_only_reports_can_be_compared():
    with pytest.raises(TypeError, match="other must be a RobustnessReport, got dict"):
        synthetic([1.0]).compare({})


# What a report looks like


def test_csv_holds_every_digit(tmp_path, case):
    case.to_csv(tmp_path / "report.csv")
    with open(tmp_path / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(case.conditions) * len(case.digests)
    for label, columns in case.values.items():
        mine = [row for row in rows if row["condition"] == label]
        assert [int(row["sample"]) for row in mine] == list(range(len(case.digests)))
        for name, values in columns.items():
            read = torch.tensor([float(row[name]) for row in mine], dtype=torch.float64)
            assert torch.equal(read.nan_to_num(7.5), values.double().nan_to_num(7.5))
        for name in set(rows[0]) - set(columns) - {"condition", "sample"}:
            assert all(row[name] == "" for row in mine)


@pytest.mark.parametrize("format", ["text", "markdown", "csv"])
def test_tables(format, case):
    table = case.table(format, metrics="all")
    for name in case.metrics:
        assert name in table
    for condition in case.conditions:
        assert condition.kind.split("(")[0] in table
    if format == "csv":
        rows = list(csv.DictReader(table.splitlines()))
        assert [float(row["mean"]) for row in rows] == [r["mean"] for r in case.summary()]
        assert table == case.table("csv")
    else:
        assert "gradients per sample" in table
        assert ("no flags raised" in table) == (not case.flags)
        assert "FrankWolfeAttack" in table and f"deepinv {dinv.__version__}" in table
    if format == "text":
        assert max(map(len, table.splitlines())) <= 100
    if format == "markdown":
        check_markdown(table)
    with pytest.raises(ValueError, match="format must be one of .* got 'html'"):
        case.table("html")
    assert str(case) == case.table() and "samples" in repr(case)


def check_markdown(table):
    """Every table has as many cells in each line."""
    for block in table.split("\n\n"):
        lines = [ln for ln in block.splitlines() if ln.startswith("|")]
        assert len({ln.replace(r"\|", "").count("|") for ln in lines}) <= 1


def test_a_table_shows_what_tells_most(case):
    named = [name for name in ("PSNR", "SSIM") if name in case.metrics] or [ERROR]
    titles = {
        "PSNR": "PSNR [dB], higher is better",
        "SSIM": "SSIM, higher is better",
        ERROR: "squared error, lower is better",
        "contrast recovery": "contrast recovery, closer to 1 is better",
        "error outside": "error outside, lower is better",
    }
    for metrics, shown in ((None, named), ("all", case.metrics), (ERROR, [ERROR])):
        lines = case.table(metrics=metrics).splitlines()
        found = [name for name, title in titles.items() if title in lines]
        assert found == [name for name in titles if name in shown]
    with pytest.raises(ValueError, match="metrics must be 'all' or among .* got 'MSE'"):
        case.table(metrics=["MSE"])


def attacked(metric, clean, random, worst, eps=1.0, unit="measurement", **columns):
    """A report of these means under one radius."""
    values = {
        "clean": torch.tensor(clean),
        f"random, eps={eps:g}": torch.tensor(random),
        f"worst case, eps={eps:g}": torch.tensor(worst),
    }
    best = math.inf if metric == "PSNR" else -math.inf
    kinds = ("random", "worst case")
    return dj.RobustnessReport(
        conditions=[Condition("clean"), *(Condition(kind, eps) for kind in kinds)],
        values={
            label: {ERROR: -v, metric: v} | (columns if label != "clean" else {})
            for label, v in values.items()
        },
        metrics={ERROR: -math.inf, metric: best},
        description={"unit": unit, "seed": "0"},
        digests=[str(i) for i in range(len(clean))],
        model_in_train_mode=False,
        seconds=0.0,
    )


HEADLINES = [
    # ratio to the noise, what is said of the size
    ({"ratio": 1.0}, "as large as the noise"),
    ({"ratio": 0.5}, "half as large as the noise"),
    ({"ratio": 2.0}, "twice as large as the noise"),
    ({"ratio": 0.301}, "0.3 times as large as the noise"),
    ({"unit": "y", "eps": 0.05}, "5 % as large as the measurements"),
    ({"eps": 0.25}, "of norm 0.25"),
    ({"unit": "image"}, "of image norm 1"),
]


@pytest.mark.parametrize("size, words", HEADLINES)
def test_the_first_line_says_it_in_words(size, words):
    columns = {"radius/|noise|": torch.tensor([size.pop("ratio", math.nan)] * 2)}
    report = attacked("PSNR", [27.0, 28.0], [26.0, 27.2], [15.0, 15.4], **size, **columns)
    line = f"27.5 dB clean, 15.2 dB under perturbations {words} (26.6 dB if random)."
    assert report.table().startswith(f"{line}\n")


def test_the_first_line_of_a_report_without_attack_or_psnr():
    assert synthetic([2.0, 3.0]).table().startswith("m: 2.5 clean.\nno flags raised\n")


def test_the_first_line_is_about_the_radius_nearest_to_the_noise():
    model, x, physics, _, _ = mri()
    attack = FrankWolfeAttack(L2Ball(1.0, relative_to="noise"), steps=1, checks=False)
    report = evaluate(model, [x], physics, [0.5, 0.9, 4], attacks=attack)
    assert report.attacked().eps == 0.9
    assert "0.9 times as large as the noise" in report.table().splitlines()[0]
    # Without a unit of noise it is the largest
    physics.noise_model = dinv.physics.UniformNoise(0.1)
    report = evaluate(model, [x], physics, [0.5, 0.9, 4])
    assert report.attacked().eps == 4


@pytest.mark.parametrize(
    "ball, eps, shown, heads",
    [
        (L2Ball(1.0), 0.5, "worst case, norm 0.5", ["x noise", "x signal"]),
        (L2Ball(1.0, relative_to="noise"), 0.5, "0.5 x noise", ["x signal", "norm"]),
        (L2Ball(1.0, relative_to="y"), 0.1, "0.1 x signal", ["x noise", "norm"]),
        (LinfBall(1.0), 0.1, "worst case, max 0.1", ["x noise", "x signal"]),
        (L2Ball(1.0, domain="image"), 0.5, "worst case, image norm 0.5", []),
    ],
)
def test_radii_are_in_the_unit_that_was_given(ball, eps, shown, heads):
    model, x, physics, _, _ = mri()
    attack = FrankWolfeAttack(ball, steps=1, checks=False)
    report = evaluate(model, [x], physics, [eps], attacks=attack)
    table = report.table()
    assert shown in table and f"worst case, eps={eps:g}" in report.values
    assert (report.values[f"worst case, eps={eps:g}"]["eps"] == eps).all()
    title = table.index("The radii in other units")
    head = table[title:].splitlines()[1]
    assert head.split("  ")[0] == "as given"
    others = [name for name in ("x noise", "x signal", "norm") if f" {name}" in head]
    assert others == heads
    assert "in image, random  in image, worst" in head
    # each flag has the unit, too
    report.values[f"worst case, eps={eps:g}"]["not_converged"] = torch.ones(5).bool()
    flag = "FLAG not_converged, worst case at "
    size = shown.split(", ")[-1]
    assert f"{flag}{size}: 5 of 5\n" in report.table()


def test_flags_are_counted_before_the_numbers():
    report = attacked("PSNR", [27.0] * 3, [26.0] * 3, [15.0] * 3)
    report.values["worst case, eps=1"]["not_converged"] = torch.tensor([1, 0, 1]).bool()
    lines = report.table().splitlines()
    assert lines[1] == "FLAG not_converged, worst case at norm 1: 2 of 3"
    assert "no flags raised" not in lines


def test_an_attack_that_does_not_go_on_until_it_has_converged_is_said_to_be_one():
    model, x, physics, _, _ = points()
    assert "LOWER BOUND" not in str(evaluate(model, [x], physics, attacks="standard"))
    attack = FrankWolfeAttack(L2Ball(1.0), steps=1, checks=False)
    report = evaluate(model, [x], physics, attacks=attack)
    assert report.lower_bound
    for text in (str(report), str(report.compare(report)), report.table("markdown")):
        assert "LOWER BOUND" in "\n".join(text.splitlines()[:3])


@pytest.mark.parametrize(
    "factor, zero, adjoint",
    [(0.5, False, False), (1.05, False, False), (1.5, False, True), (3.0, True, True)],
)
def test_worse_than_nothing(factor, zero, adjoint):
    """Truth 1, noise of .1: the errors are about (1 - factor)^2."""
    _, x, physics, _, _ = points()
    data = [(torch.ones(7, 2), torch.ones(7, 2) * 0.9)]
    if factor == 0.5:
        data = [(torch.ones(7, 2), torch.ones(7, 2) * 1.7)]
    report = evaluate(Scaled(factor), data, physics, [])
    found = report.worse_than
    assert ("an all-zero image" in found) == zero
    assert ("A'y of the same measurements" in found) == adjoint
    line = "WORSE on average than an all-zero image: everywhere"
    assert (line in report.table().splitlines()) == zero
    both = report.compare(evaluate(Scaled(1.0), data, physics, []), ("this", "y"))
    line = "WORSE on average than an all-zero image: this, everywhere"
    assert (line in both.table().splitlines()) == zero


def test_a_perfect_reference_is_no_reproach():
    _, _, physics, _, _ = points()
    report = evaluate(Scaled(3.0), [torch.zeros(7, 2)], physics, [])
    assert "an all-zero image" not in report.worse_than


@pytest.mark.parametrize("count, shown", [(19, False), (20, True)])
def test_percentiles_of_few_samples_are_the_worst(count, shown):
    assert ("are worse than" in synthetic(range(count)).table()) == shown


def test_means_are_as_exact_as_their_intervals():
    numbers = torch.randn(100, generator=torch.Generator().manual_seed(0))
    for spread, text in ((0.01, "27.000"), (0.3, "27.00"), (3, "27.0"), (30, "27")):
        values = 27 + spread * (numbers - numbers.mean()).double()
        table = synthetic(values, math.inf).table()
        assert re.search(rf"clean +{text} +\[", table)
    # not of one size: each row by its own interval
    wide = attacked("m", [1e-5, 2e-5], [1e-3, 2e-3], [1.0, 2.0]).table()
    for text in ("1.50e-05  [1.00e-05, 2.00e-05]", "0.0015      [0.0010, 0.0020]", "[1.0, 2.0]"):
        assert text in wide


def test_latex_of_one_report(case, tmp_path):
    text = case.to_latex(tmp_path / "t.tex", metrics="all")
    assert (tmp_path / "t.tex").read_text() == text
    assert text.count(r"\begin{tabular}") == text.count(r"\bottomrule") == len(case.metrics)
    for condition in case.conditions:
        assert words.name_of(case, condition).split(",")[0] in text
    outside = re.sub(r"\\begin.*?\\end\{tabular\}", "%", text, flags=re.S)
    assert all(line.startswith("%") for line in outside.splitlines())
    with pytest.raises(ValueError, match="metrics must be 'all' or among"):
        case.to_latex(metrics="sharpness")


@pytest.mark.parametrize("unit, name", [("noise", "noise"), ("y", "signal")])
def test_radii_in_latex(unit, name):
    report = attacked("m", [1.0, 2.0], [1.0, 3.0], [2.0, 3.0], eps=0.5, unit=unit)
    assert rf"worst case, $0.5\times$ {name} &" in report.to_latex()
    assert rf"& $0.5\times$ {name} \\" in report.compare(report).to_latex()


def test_the_numbers_of_a_cell_have_as_many_decimals():
    """An interval that ended on a whole number stood as 21 beside 20.5."""
    report = attacked("m", [20.5, 21.0], [1e-3, 2e-3], [100.0, 200.0])
    for line in (*report.table().splitlines(), *report.compare(report).table().splitlines()):
        for mean, low, high in re.findall(r"([\d.]+) +\[([\d.]+), ([\d.]+)\]", line):
            assert len({len(number.partition(".")[2]) for number in (mean, low, high)}) == 1


# Curves


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def test_plot(tmp_path, case, pyplot):
    figure = case.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000
    (ax,) = figure.axes
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["worst case", "random, equal norm"]
    metric = "PSNR" if "PSNR" in case.metrics else ERROR
    assert ax.get_ylabel() == {"PSNR": "PSNR [dB]"}.get(metric, metric)
    for line, kind in zip(ax.lines, ("random", "worst case"), strict=True):
        assert line.get_linestyle() == ("--" if kind == "random" else "-")
        known = [c for c in case.conditions if c.kind == kind]
        means = [case.values[c.label][metric].mean().item() for c in known]
        assert line.get_xdata().tolist() == [c.eps for c in known]
        assert line.get_ydata().tolist() == means
    both = case.plot(metrics=[ERROR, metric])
    assert len(both.axes) == 2
    with pytest.raises(ValueError, match="metrics must be 'all' or among .* got"):
        case.plot(metrics=["sharpness"])
    with pytest.raises(ValueError, match="metrics must be measured at every radius"):
        case.plot(metrics=[ERROR, "error outside"])
    every = [name for name in case.metrics if name in case.values["clean"]]
    assert len(case.plot(metrics="all").axes) == len(every)


AXES = {
    "noise": "size of the perturbation, in norms of the noise",
    "y": "size of the perturbation, in norms of the measurements",
    "measurement": r"norm $\varepsilon$ of the perturbation of the measurements",
    "image": r"norm $\varepsilon$ of the perturbation of the image",
}


@pytest.mark.parametrize("unit", AXES)
def test_the_axis_of_a_plot_says_its_unit(unit, pyplot):
    report = attacked("PSNR", [27.0] * 3, [26.0] * 3, [15.0] * 3, unit=unit)
    _, (left, right) = pyplot.subplots(1, 2)
    assert report.plot(ax=right) is right.figure and not left.lines
    assert right.get_xlabel() == AXES[unit] and len(right.lines) == 2
    assert not right.figure.get_suptitle()
    with pytest.raises(ValueError, match="ax is for one metric, got 2 metrics"):
        report.plot(metrics="all", ax=right)


def test_axes_of_a_part_of_a_figure(tmp_path, pyplot):
    report = attacked("PSNR", [27.0] * 3, [26.0] * 3, [15.0] * 3)
    whole = pyplot.figure()
    part, _ = whole.subfigures(1, 2)
    assert report.plot(tmp_path / "a.png", ax=part.subplots()) is whole
    assert (tmp_path / "a.png").exists()


def test_vector_graphics_have_text(tmp_path, pyplot):
    report = attacked("PSNR", [27.0] * 3, [26.0] * 3, [15.0] * 3)
    before = dict(pyplot.rcParams)
    report.plot(tmp_path / "a.svg")
    report.plot(tmp_path / "a.pdf")
    assert dict(pyplot.rcParams) == before
    texts = [
        "".join(node.itertext()).strip()
        for node in ElementTree.parse(tmp_path / "a.svg").iter()
        if node.tag.endswith("}text")
    ]
    assert "PSNR [dB]" in texts and "worst case" in texts
    fonts = (tmp_path / "a.pdf").read_bytes()
    assert b"/CIDFontType2" in fonts and b"/Type3" not in fonts


def test_plot_needs_radii():
    with pytest.raises(ValueError, match="plot needs radii: evaluate with epsilons"):
        synthetic([1.0]).plot(metrics=["m"])


def test_a_report_can_be_kept(tmp_path, case):
    torch.save(case, tmp_path / "report")
    again = torch.load(tmp_path / "report", weights_only=False)
    assert again.table() == case.table()
