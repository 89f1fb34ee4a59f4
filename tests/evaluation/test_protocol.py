"""What an evaluation is asked for: metrics, peaks, objectives, radii, targets."""

import math

import deepinv as dinv
import pytest
import torch
from deepinv.loss.metric import MAE, NMSE, PSNR, SSIM, Metric
from deepinv.utils.mixins import MRIMixin
from evaluation_cases import Scaled
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

import deepinv_jitter as dj
from deepinv_jitter.evaluation.protocol import objective_name

ERROR = "squared error"
PHYSICS = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))


def evaluate(data, model=None, physics=PHYSICS, **kwargs):
    kwargs = {"epsilons": [], "attacks": "quick", "draws": 2, "verbose": False} | kwargs
    return dj.evaluate_robustness(model or Scaled(0.9), data, physics, **kwargs)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# Peak


def sections(count=4):
    return dj.ReflectivityDataset(count, img_size=(32, 32), seed=1)


def test_sections_have_a_peak_of_2():
    """They lie in [-1, 1]: 6.02 dB more than with a peak of 1."""
    data = sections()
    reports = {
        "declared": evaluate(DataLoader(data, batch_size=2)),
        "wrapped": evaluate(DataLoader(dj.IndexedDataset(data), batch_size=2)),
        "parts": evaluate(DataLoader(ConcatDataset([Subset(data, [0, 1]), Subset(data, [2, 3])]))),
        "given": evaluate([torch.stack([s["x"] for s in data])], peak=2),
    }
    plain = evaluate([torch.stack([s["x"] for s in data])])
    for name, report in reports.items():
        clean = report.values["clean"]
        gain = clean["PSNR"] - plain.values["clean"]["PSNR"]
        assert torch.allclose(gain, torch.tensor(20 * math.log10(2)).double(), atol=0.01)
        assert not torch.allclose(clean["SSIM"], plain.values["clean"]["SSIM"]), name
        assert "peak: 2.0\n" in report.table() and "peak_exceeded" not in report.flags
    assert "peak: 1.0\n" in plain.table()
    # A section with no echo of one sign has a range of 1
    wide = [s["x"].max() - s["x"].min() > 1.001 for s in data]
    assert plain.flags["peak_exceeded"] == {"clean": sum(wide)} and sum(wide) > 2


class Declaring(dinv.datasets.TensorDataset):
    def __init__(self, peak):
        super().__init__(x=images(2, 1, 16, 16), use_dict_output=True)
        self.peak = peak


def test_a_declared_peak_may_be_a_tensor():
    report = evaluate(DataLoader(Declaring(torch.tensor(2.0)), 2))
    assert "peak: 2.0\n" in report.table()


@pytest.mark.parametrize(
    "peak, error", [(0.0, ValueError), (-1, ValueError), (math.nan, ValueError), (True, TypeError)]
)
def test_a_declared_peak_is_checked(peak, error):
    with pytest.raises(error, match="peak of the data set must be"):
        evaluate(DataLoader(Declaring(peak), 2))


def test_the_range_of_each_truth():
    x = images(3, 1, 16, 16) * torch.tensor([1.0, 2.0, 4.0]).reshape(3, 1, 1, 1)
    report = evaluate([x, x[:1]], peak="sample")
    clean = report.values["clean"]
    with torch.no_grad():
        errors = clean[ERROR] / x[0].numel()
    spans = (x.amax((1, 2, 3)) - x.amin((1, 2, 3))).double()
    expected = 10 * torch.log10(spans[[0, 1, 2, 0]] ** 2 / errors)
    assert torch.allclose(clean["PSNR"], expected, atol=1e-3)
    assert "peak: sample" in report.table() and "peak_exceeded" not in report.flags


def test_peaks_of_own_metrics_are_told():
    metrics = [PSNR(max_pixel=255), PSNR(max_pixel=1, min_pixel=-1), SSIM(max_pixel=None), MAE()]
    report = evaluate([2 * images(2, 1, 16, 16) - 1], metrics=metrics)
    assert "peak: 255.0 (PSNR), 2.0 (PSNR 2), sample (SSIM)\n" in report.table()
    assert "peak_exceeded" not in report.flags
    report = evaluate([2 * images(2, 1, 16, 16) - 1], metrics=[PSNR(), MAE()])
    assert report.flags["peak_exceeded"] == {"clean": 2}


def test_metrics_without_a_least_value():
    """As deepinv's BRISQUE and NIMA."""
    metric = MAE()
    metric.max_pixel = 255
    assert "peak: 255.0 (MAE)" in evaluate([images(2, 1, 16, 16)], metrics=[metric]).table()


class OwnMRI(MRIMixin, dinv.physics.LinearPhysics):
    """A physics of a user's own, complex as it derives from deepinv's mixin."""

    def A(self, x, **kwargs):
        return x

    def A_adjoint(self, y, **kwargs):
        return y


class Turned(nn.Module):
    """What has the magnitudes of the truth, and no channel of it."""

    def forward(self, y, physics):
        return -physics.A_adjoint(y).flip(1)


def multicoil():
    maps = torch.ones(1, 3, 16, 16, dtype=torch.complex64) / 3**0.5
    mask = torch.ones(1, 1, 16, 16)
    return dinv.physics.MultiCoilMRI(mask=mask, coil_maps=maps, img_size=(1, 2, 16, 16))


def closed_over(mri):
    return dinv.physics.LinearPhysics(A=lambda x: mri.A(x), A_adjoint=lambda y: mri.A_adjoint(y))


IDENTITY = dinv.physics.Denoising(dinv.physics.ZeroNoise())
SINGLE = dj.SingleCoilMRI(img_size=(16, 16))
COMPLEX = {
    "ours": SINGLE,
    "deepinv's": dinv.physics.MRI(img_size=(2, 16, 16)),
    "several coils": multicoil(),
    "composed": dinv.physics.ComposedLinearPhysics(multicoil(), IDENTITY),
    "stacked": dinv.physics.StackedLinearPhysics([SINGLE]),
    "closed over": closed_over(SINGLE),
    "own": OwnMRI(),
}


@pytest.mark.parametrize("name", COMPLEX)
def test_images_of_mri_are_measured_by_their_magnitude(name):
    x = images(2, 2, 16, 16)
    x[:1] *= 0.6  # a magnitude of up to 0.85
    report = evaluate([x], Turned(), COMPLEX[name])
    assert report.complex_abs
    assert report.values["clean"]["PSNR"].min() > 79
    assert report.flags["peak_exceeded"] == {"clean": 1}


def test_two_channels_of_another_physics_are_no_complex_images():
    """Two dyes of a microscope: each counts, in the metrics and in the pictures."""
    x = images(3, 2, 16, 16)
    report = evaluate([x], Turned(), IDENTITY)
    expected = PSNR()(-x.flip(1), x), SSIM()(-x.flip(1), x)
    for name, values in zip(("PSNR", "SSIM"), expected):
        assert torch.equal(report.values["clean"][name], values.double())
    assert not report.complex_abs and "peak_exceeded" not in report.flags
    assert evaluate([x], Turned(), IDENTITY, metrics=[PSNR(complex_abs=True)]).complex_abs


PEAKS = [
    (0, ValueError, "peak must be positive"),
    (-1.0, ValueError, "peak must be positive"),
    (math.inf, ValueError, "peak must be finite"),
    ("max", ValueError, "peak must be positive, None or 'sample', got 'max'"),
    (True, TypeError, "peak must be a number"),
    ([1], TypeError, "peak must be a number"),
]


@pytest.mark.parametrize("peak, error, message", PEAKS)
def test_peaks_refused(peak, error, message):
    with pytest.raises(error, match=message):
        evaluate([images(1, 1, 16, 16)], peak=peak)


def test_peaks_that_contradict_are_refused():
    with pytest.raises(ValueError, match="peak is for the default metrics, got peak=2"):
        evaluate([images(1, 1, 16, 16)], peak=2, metrics=[PSNR()])
    other = sections(2)
    other.peak = 1.0
    loaders = [DataLoader(sections(2)), DataLoader(other)]
    with pytest.raises(ValueError, match=r"different peaks, \[1.0, 2.0\]: give peak"):
        evaluate(loaders)
    assert evaluate(loaders, peak=2).description["peak"] == "2.0"


@pytest.mark.parametrize("together", [lambda a, b: [a, b], lambda a, b: ConcatDataset([a, b])])
def test_data_without_a_peak_are_not_measured_by_that_of_others(together):
    """They are taken to lie in [0, 1]: a peak of 2 would add 6 decibels."""
    data = together(sections(2), [{"x": images(1, 32, 32)}])
    loaders = [*map(DataLoader, data)] if isinstance(data, list) else DataLoader(data)
    with pytest.raises(ValueError, match=r"different peaks, \[1.0, 2.0\]: give peak"):
        evaluate(loaders)


# Metrics


def test_metrics_are_called_like_their_classes():
    metrics = [PSNR(), MAE(), PSNR(center_crop=4), PSNR(max_pixel=2)]
    report = evaluate([images(2, 1, 16, 16)], metrics=metrics)
    assert list(report.metrics) == [ERROR, "PSNR", "MAE", "PSNR 2", "PSNR 3"]
    assert report.metrics["MAE"] == -math.inf and report.metrics["PSNR 3"] == math.inf
    assert list(evaluate([images(2, 4)], metrics=MAE()).metrics) == [ERROR, "MAE"]
    assert list(evaluate([images(2, 4)], metrics=()).metrics) == [ERROR]
    named = {"a": MAE(), "b": MAE()}
    assert list(evaluate([images(2, 4)], metrics=named).metrics) == [ERROR, "a", "b"]


COLUMNS = ["gradients", "not_converged", "objective", "a undefined"]


@pytest.mark.parametrize("name", [*COLUMNS, "sample", "condition", "network"])
def test_names_of_columns_are_refused(name):
    with pytest.raises(ValueError, match=f"must not be called '{name}', a column of"):
        evaluate([images(2, 4)], metrics={name: MAE()})


@pytest.mark.parametrize("eps", [1, 1.0, torch.tensor(1.0), [1.0], torch.ones(1)])
def test_one_radius_or_several(eps):
    report = evaluate([images(2, 4)], epsilons=eps)
    assert "worst case, eps=1" in report.values


def test_radii_that_differ_by_rounding_are_one():
    assert 3 * 0.1 != 0.3
    report = evaluate([images(2, 4)], epsilons=[0.3, 3 * 0.1])
    assert list(report.values) == ["clean", "random, eps=0.3", "worst case, eps=0.3"]


# Truths without a value


def test_blank_truths_are_left_out_of_metrics_that_need_more():
    x = images(4, 1, 16, 16)
    x[2] = 0
    # A range of each truth's own is zero for it
    metrics = [NMSE(), PSNR(max_pixel=None, min_pixel=None), SSIM(max_pixel=None), MAE()]
    report = evaluate([x], metrics=metrics, epsilons=0.5, shifts=dj.Bias(0.1))
    whole = [True] * 4
    for label in ("clean", "worst case, eps=0.5", "random, eps=0.5"):
        for name in ("NMSE", "PSNR", "SSIM"):
            assert report.defined(label, name).tolist() == [True, True, False, True]
            assert report.flags[f"{name} undefined"][label] == 1
        for name in ("MAE", ERROR):
            assert report.defined(label, name).tolist() == whole
    assert "MAE undefined" not in report.flags
    # No truth is blank once the edit is in it
    assert report.defined("Bias(value=0.1)", "NMSE").tolist() == whole
    assert "FLAG NMSE undefined, clean: 1 of 4\n" in report.table()
    rest = [0, 1, 3]
    for row in report.summary():
        values = report.values[
            next(c.label for c in report.conditions if c.kind == row["condition"])
        ][row["metric"]]
        if row["metric"] in ("NMSE", "PSNR") and "Bias" not in row["condition"]:
            assert row["mean"] == pytest.approx(values[rest].mean().item())
        if row["metric"] != "error outside":  # the edit is everywhere
            assert all(math.isfinite(row[k]) for k in ("mean", "low", "high", "worst"))


def test_comparisons_leave_out_what_either_has_not():
    x = images(8, 1, 16, 16)
    x[2] = 0
    first, second = (evaluate([x], Scaled(f), metrics=[NMSE()]) for f in (0.9, 0.5))
    row = first.compare(second)["clean", "NMSE"]
    kept = first.defined("clean", "NMSE")
    expected = (first.values["clean"]["NMSE"] - second.values["clean"]["NMSE"])[kept]
    assert row["difference"] == pytest.approx(expected.mean().item())
    assert math.isfinite(row["low"]) and row["verdict"] == "better"


def test_perfect_reconstructions_have_no_psnr():
    """dj.PaperPSNR gives infinity there, and deepinv's 80 dB."""
    x = 0.8 * images(3, 1, 16, 16)
    y = x.clone()
    y[1:] += 0.1
    report = evaluate([(x, y)], Scaled(1.0), metrics=[dj.PaperPSNR(), PSNR()])
    assert report.values["clean"]["PaperPSNR"][0] == math.inf
    assert report.flags["PaperPSNR undefined"] == {"clean": 1}
    rows = {row["metric"]: row for row in report.summary()}
    assert rows["PaperPSNR"]["mean"] == pytest.approx(20, abs=1e-3)
    assert "PSNR undefined" not in report.flags


def test_what_the_network_gets_wrong_is_not_left_out():
    class Diverging(nn.Module):
        def forward(self, y, physics):
            return torch.where(y.flatten(1).amax(1).reshape(-1, 1, 1, 1) > 5, math.nan, y)

    x = images(3, 1, 16, 16)
    x[1] += 9
    report = evaluate([x], Diverging(), metrics=[NMSE(), PSNR()], peak=None)
    assert not [name for name in report.flags if "undefined" in name]
    assert all(math.isnan(row["mean"]) for row in report.summary())


def test_all_undefined():
    report = evaluate([torch.zeros(3, 1, 16, 16)], metrics=[NMSE()])
    row = report.summary()[-1]
    assert row["metric"] == "NMSE" and math.isnan(row["mean"])
    assert report.flags["NMSE undefined"] == {"clean": 3}


def test_blank_measurements_are_no_unit():
    x = images(3, 1, 16, 16)
    y = x.clone()
    y[1] = 0
    report = evaluate([(x, y)], epsilons=0.5)
    worst = report.values["worst case, eps=0.5"]
    assert worst["radius/|y|"].isnan().tolist() == [False, True, False]
    assert worst["|dy|/|y|"].isnan().tolist() == [False, True, False]
    rows = [row for row in report.summary() if row["condition"] == "worst case"]
    assert all(math.isfinite(row["radius/|y|"]) for row in rows)


def test_edits_that_change_nothing_have_no_recovery():
    class Nothing(dj.Shift):
        def detail(self, x, random):
            return torch.zeros_like(x) if x[0, 0, 0] < 0.5 else torch.ones_like(x)

    x = images(3, 1, 16, 16)
    x[:, 0, 0, 0] = torch.tensor([0.1, 0.9, 0.9])
    report = evaluate([x], shifts={"edit": Nothing()})
    assert report.flags["contrast recovery undefined"] == {"edit": 1}
    assert report.flags["error outside undefined"] == {"edit": 2}
    rows = {row["metric"]: row for row in report.summary() if row["condition"] == "edit"}
    assert all(math.isfinite(rows[k]["mean"]) for k in ("contrast recovery", "error outside"))


# Objectives


class Corner(nn.Module):
    """Two entries: errors of the first are halved, those of the second kept."""

    def forward(self, y, physics):
        return y * torch.tensor([0.5, 1.0])


def first_entry(x_net, x):
    return (x_net - x)[:, 0].abs()


WEIGHT = torch.tensor([1.0, 0.0])
OBJECTIVES = {
    "squared error": ("error", lambda x_net, x, clean: (x_net - x).square().sum(1)),
    "deviation": ("deviation", lambda x_net, x, clean: (x_net - clean).square().sum(1)),
    "weighted squared error": (
        WEIGHT,
        lambda x_net, x, clean: ((x_net - x).square() * WEIGHT).sum(1),
    ),
    "MAE": (MAE(), lambda x_net, x, clean: (x_net - x).abs().mean(1)),
    "first_entry": (first_entry, lambda x_net, x, clean: first_entry(x_net, x)),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_winners_are_chosen_by_the_objective_of_the_attack(name):
    """Of two attacks, and of the sweep's points, that which the objective calls worst."""
    objective, value = OBJECTIVES[name]
    x = torch.zeros(5, 2)
    y = 0.1 * torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    attack = dj.RandomAttack(dj.L2Ball(1.0), samples=40, objective=objective, checks=False)
    report = evaluate([(x, y)], Corner(), attacks=attack, epsilons=[0.5, 1.0], metrics=[])
    assert report.description["objective"] == name
    assert f"objective: {name}\n" in report.table()
    column = ERROR if name == "squared error" else "objective"
    assert (column in report.metrics) and report.metrics[column] == -math.inf
    assert ("objective" in report.metrics) == (name != "squared error")
    clean = Corner()(y, None)
    expected = value(clean, x, clean).double()
    assert torch.allclose(report.values["clean"][column], expected, atol=1e-6)
    found = [report.values[f"worst case, eps={eps}"] for eps in (0.5, 1)]
    for columns, eps in zip(found, (0.5, 1.0), strict=True):
        result = attack.run(Corner(), x, y, PHYSICS, eps=eps)
        assert (columns[column] >= result.loss.double() * (1 - 1e-5)).all()
        worst = report.values[f"random, eps={eps:g}"]["worst draw"]
        assert torch.equal(columns["random_beats_attack"], worst > columns[column])
    assert (found[1][column] >= found[0][column]).all()
    if name in ("first_entry", "weighted squared error"):
        # It lies along the first axis, which does not harm the squared error most
        by_error = evaluate(
            [(x, y)], Corner(), epsilons=[0.5, 1.0], metrics=[],
            attacks=dj.RandomAttack(dj.L2Ball(1.0), samples=40, checks=False),
        )  # fmt: skip
        assert (by_error.values["worst case, eps=1"][ERROR] > found[1][ERROR]).all()


def test_a_metric_that_is_better_when_higher_is_turned_round():
    class Likeness(Metric):
        def __init__(self):
            super().__init__()
            self.lower_better = False

        def metric(self, x_net, x, *args, **kwargs):
            return -(x_net - x).abs().flatten(1).sum(1)

    attack = dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=3, objective=Likeness(), checks=False)
    report = evaluate([images(3, 1, 12, 12)], attacks=attack, epsilons=1, metrics=Likeness())
    assert report.description["objective"] == "-Likeness"
    worst = report.values["worst case, eps=1"]
    assert torch.allclose(worst["objective"], -worst["Likeness"])
    assert (worst["objective"] > report.values["clean"]["objective"]).all()


def test_several_attacks_have_one_objective():
    ball = dj.L2Ball(1.0)
    deviating = [
        dj.RandomAttack(ball, samples=3, objective="deviation", checks=False, seed=s)
        for s in (0, 1)
    ]
    report = evaluate([images(3, 4)], attacks=deviating, epsilons=0.5)
    assert report.description["objective"] == "deviation"
    with pytest.raises(ValueError, match="attacks must have one objective, by which"):
        evaluate([images(3, 4)], attacks=[deviating[0], dj.RandomAttack(ball)])
    judged = dj.WorstCase([deviating[0], dj.RandomAttack(ball)], objective="deviation")
    assert evaluate([images(3, 4)], attacks=judged).description["objective"] == "deviation"


def cut(x_net, x):
    """To the range of images, where they lie."""
    return x_net.clamp_(0, 0.5).sub_(x).square().flatten(1).sum(1)


def cut_both(x_net, x):
    return cut(x_net, x.clamp_(0, 0.5))


def test_metrics_and_objectives_may_write_into_what_they_are_given():
    x = images(3, 1, 12, 12)
    given = x.clone()
    attack = dj.RandomAttack(dj.L2Ball(1.0), samples=3, objective=cut, checks=False)
    metrics = {"cut": Metric(cut_both), "PSNR": PSNR()}
    options = {"attacks": attack, "epsilons": 1.0, "shifts": {"edit": dj.Bias(0.1)}}
    both, alone = (evaluate([given], metrics=m, **options) for m in (metrics, PSNR()))
    assert torch.equal(given, x)
    for label, columns in alone.values.items():
        for name, values in columns.items():
            other = both.values[label][name]
            torch.testing.assert_close(values, other, rtol=0, atol=0, equal_nan=True)


def test_objectives_without_a_value_per_sample_are_refused():
    attack = dj.RandomAttack(dj.L2Ball(1.0), objective=MAE(reduction="mean"))
    with pytest.raises(ValueError, match=r"the objective must give one value per sample"):
        evaluate([images(3, 4)], attacks=attack)


def test_a_deviation_is_not_asked_of_edited_truths():
    attack = dj.RandomAttack(dj.L2Ball(1.0), samples=3, objective="deviation")
    report = evaluate([images(3, 4)], attacks=attack, shifts={"edit": dj.Bias(0.1)})
    assert "objective" in report.values["clean"]
    assert "objective" not in report.values["edit"]
    assert objective_name(MAE(train_loss=True)) == "MAE"


# Units of the radii


@pytest.mark.parametrize("attacks", ["quick", "standard", "paper"])
@pytest.mark.parametrize("unit", ["noise", "y"])
def test_named_attacks_take_a_unit(attacks, unit):
    x = images(2, 6, seed=1)
    report = evaluate([x], attacks=attacks, relative_to=unit, epsilons=[0.5])
    worst = report.values["worst case, eps=0.5"]
    relative = worst["radius/|noise|" if unit == "noise" else "radius/|y|"]
    assert torch.allclose(relative, torch.tensor(0.5).double())
    assert torch.allclose(worst["|delta|"], worst["radius"], rtol=1e-4)


def test_attacks_with_a_budget_have_their_unit():
    attack = dj.RandomAttack(dj.L2Ball(1.0, relative_to="y"))
    with pytest.raises(ValueError, match="relative_to is for attacks that are named"):
        evaluate([images(2, 6)], attacks=attack, relative_to="noise")
    with pytest.raises(ValueError, match="relative_to must be one of .* got 'z'"):
        evaluate([images(2, 6)], relative_to="z")


@pytest.mark.parametrize("other", [dj.LinfBall(0.1), dj.L2Ball(0.5, relative_to="y")])
def test_a_radius_must_mean_the_same_to_all_attacks(other):
    attacks = [dj.RandomAttack(ball, samples=3) for ball in (dj.L2Ball(1.0), other)]
    for several in (attacks, dj.WorstCase(attacks)):
        with pytest.raises(ValueError, match=r"attacks must have one kind of radius, got L2Ball\("):
            evaluate([images(2, 6)], attacks=several, epsilons=0.5)


# Truths of another shape


class Magnitude(Metric):
    """As for raw fastMRI: the magnitude of a complex image, cropped to the truth."""

    def metric(self, x_net, x, *args, **kwargs):
        top, left = ((a - b) // 2 for a, b in zip(x_net.shape[2:], x.shape[2:], strict=True))
        crop = x_net[:, :, top : top + x.shape[2], left : left + x.shape[3]]
        return (crop.square().sum(1, keepdim=True) + 1e-12).sqrt().sub(x).square().mean((1, 2, 3))


def raw():
    image = images(3, 2, 16, 16)
    physics = dj.SingleCoilMRI((images(16, seed=2) < 0.7).float(), img_size=(16, 16))
    physics.noise_model = dinv.physics.GaussianNoise(0.05)
    x = image.square().sum(1, keepdim=True).sqrt()[..., 3:13, 3:13]
    model = dj.UnfoldedGD(dj.UnrolledDnCNN(2, depth=3, width=4), stepsize=0.5, max_iter=2)
    return {"x": x, "y": physics(image)}, physics, model.eval()


def test_truths_smaller_than_the_reconstruction(tmp_path):
    batch, physics, model = raw()
    attack = dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=4, objective=Magnitude())
    options = {"physics": physics, "attacks": attack, "metrics": {"mse": Magnitude()}}
    options |= {"epsilons": [0.5, 1.0], "state": tmp_path / "s"}
    report = evaluate([batch], model, **options)
    assert list(report.metrics) == ["objective", "mse"]
    clean, worst = report.values["clean"], report.values["worst case, eps=1"]
    with torch.no_grad():
        expected = Magnitude()(model(batch["y"], physics), batch["x"]).double()
    assert torch.allclose(clean["mse"], expected)
    assert torch.equal(worst["mse"], worst["objective"])
    assert (worst["mse"] > clean["mse"]).all() and ERROR not in worst
    assert not worst["random_beats_attack"].any()
    assert "objective, lower is better" in report.table()
    alone = evaluate([batch], model, **(options | {"metrics": [], "state": None}))
    assert list(alone.metrics) == ["objective"]
    assert torch.equal(
        evaluate([batch], model, **options).values["worst case, eps=1"]["mse"], worst["mse"]
    )


@pytest.mark.parametrize(
    "changes", [{"metrics": None}, {"attacks": "quick"}, {"shifts": dj.Bias(0.1)}]
)
def test_truths_of_another_shape_need_all_of_it(changes):
    batch, physics, model = raw()
    attack = dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=4, objective=Magnitude())
    options = {"attacks": attack, "metrics": {"mse": Magnitude()}, "physics": physics}
    with pytest.raises(ValueError, match=r"shape of x, \(3, 1, 10, 10\), got \(3, 2, 16"):
        evaluate([batch], model, **(options | changes))


def test_complex_reconstructions_of_real_truths():
    """For an objective and metrics that take the magnitude; no squared error then."""

    class Phase(nn.Module):
        def forward(self, y, physics):
            return torch.polar(y, y)

    class Error(Metric):
        def metric(self, x_net, x, *args, **kwargs):
            return (x_net.abs() - x).square().flatten(1).mean(1)

    x = images(3, 1, 4, 4)
    with pytest.raises(TypeError, match="must be complex if x is, and only then"):
        evaluate([x], Phase())
    attack = dj.RandomAttack(dj.L2Ball(1.0), samples=3, objective=Error())
    report = evaluate([(x, x)], Phase(), attacks=attack, metrics=Error(), epsilons=0.5)
    assert list(report.metrics) == ["objective", "Error"]
    assert report.values["clean"]["Error"].abs().max() < 1e-9
    assert (report.values["worst case, eps=0.5"]["Error"] > 1e-3).all()


# Models that a self-supervised loss has adapted

LOSSES = {
    "splitting": lambda: dinv.loss.SplittingLoss(
        mask_generator=dinv.physics.generator.BernoulliSplittingMaskGenerator(
            (1, 16, 16), 0.7, rng=torch.Generator().manual_seed(0)
        ),
        eval_n_samples=2,
    ),
    "splitting, own masks": lambda: dinv.loss.SplittingLoss(eval_n_samples=2),
    "splitting, whole": lambda: dinv.loss.SplittingLoss(eval_split_input=False),
    "R2R": lambda: dinv.loss.R2RLoss(eval_n_samples=2),
    "score": lambda: dinv.loss.ScoreLoss(),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.filterwarnings("ignore:Mask generator not defined")
def test_models_adapted_by_a_self_supervised_loss(name):
    """Twice the same numbers, those of the model in evaluation mode, and nothing left behind."""
    physics = dinv.physics.Inpainting(
        (1, 16, 16), mask=(images(1, 16, 16) < 0.8).float(), noise_model=PHYSICS.noise_model
    )
    if name in ("R2R", "score"):
        physics = PHYSICS
    model = dinv.models.DnCNN(1, 1, depth=2, nf=4, pretrained=None)
    if name != "score":
        model = dinv.models.ArtifactRemoval(model)
    model = LOSSES[name]().adapt_model(model)
    model.train()
    attack = dj.RandomAttack(dj.L2Ball(1.0), samples=3)
    x = images(3, 1, 16, 16)
    torch.rand(3)
    options = {"physics": physics, "attacks": attack, "epsilons": 0.5}
    names = list(model.state_dict())
    generator = getattr(model, "mask_generator", None)
    state = None if generator is None else generator.rng.get_state()
    first = evaluate([x], model, **options)
    model.eval()
    second = evaluate([x], model, **options)
    for label, columns in first.values.items():
        for key, values in columns.items():
            assert torch.equal(values.nan_to_num(7), second.values[label][key].nan_to_num(7))
    assert getattr(model, "mask_generator", None) is generator
    assert list(model.state_dict()) == names
    assert generator is None or torch.equal(generator.rng.get_state(), state)
    # Masks from a generator that each call makes anew, as the first would, are always the same
    random = name in ("splitting", "R2R")
    assert ("stochastic_model" in first.flags) == random
    if name == "splitting, whole":
        whole = evaluate([x], model.model, **options)
        assert torch.equal(whole.values["clean"][ERROR], first.values["clean"][ERROR])
    attacked = evaluate([x], model, **(options | {"attacks": "quick"}))
    harm = attacked.values["worst case, eps=0.5"][ERROR]
    assert (harm > attacked.values["random, eps=0.5"][ERROR]).all()
