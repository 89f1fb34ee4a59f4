"""Pictures: what is kept of an evaluation, and what is made of it."""

import deepinv as dinv
import pytest
import torch
from evaluation_cases import (
    PROBLEMS,
    Scaled,
    evaluate,
    measured,
    mri,
    noise,
    perturbed,
    points,
    sections,
)

import deepinv_jitter as dj
from deepinv_jitter.evaluation import pictures

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
plt = pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


# What is kept


@pytest.mark.parametrize("problem", PROBLEMS)
def test_pictures_are_outputs_of_the_model(problem):
    """One batch, as the last bits of a convolution depend on its size."""
    model, x, physics, epsilons, shift = problem()
    count = len(x) if problem is points else 2
    report = evaluate(model, [x], physics, epsilons, shifts={"d": shift}, pictures=2)
    assert list(report.pictures) == [c.label for c in report.conditions]
    y = measured(physics, x)
    moved, _ = shift(x)
    with torch.no_grad():
        expected = {"clean": model(y, physics), "d": model(y + physics.A(moved - x), physics)}
    for label, pair in report.pictures.items():
        truths, images = (torch.stack(pair[name]) for name in ("x", "x_net"))
        assert len(truths) == len(images) == count
        assert torch.equal(truths, (moved if label == "d" else x)[:count])
        if label in expected:
            assert torch.equal(images, expected[label][:count])
        # the errors that were measured are those of the pictures
        if "random" not in label:
            errors = (images - truths).double().square().flatten(1).sum(1)
            assert torch.allclose(errors, report.values[label]["squared error"][:count])


def test_a_picture_of_random_perturbations_is_the_first_draw():
    model, x, physics, _, _ = mri()
    one, many = (evaluate(model, [x], physics, [0.5], draws=n) for n in (1, 3))
    label = "random, eps=0.5"
    for a, b in zip(*(r.pictures[label]["x_net"] for r in (one, many)), strict=True):
        assert torch.equal(a, b)
    errors = torch.stack(one.pictures[label]["x_net"]) - x[:4]
    expected = one.values[label]["squared error"][:4]
    assert torch.allclose(errors.double().square().flatten(1).sum(1), expected)


@pytest.mark.parametrize("wanted, kept", [(0, 0), (1, 1), (4, 4), (9, 5)])
def test_the_first_samples_are_kept_whatever_the_batches(wanted, kept):
    model, x, physics, _, _ = mri()
    for batches in ([x], [x[:3], x[3:]], list(x.split(1))):
        report = evaluate(model, batches, physics, [], pictures=wanted)
        assert len(report.pictures.get("clean", {"x": []})["x"]) == kept
        for truth, image in zip(report.pictures.get("clean", {"x": []})["x"], x):
            assert torch.equal(truth, image)
            # not a part of a tensor that would be kept alive
            assert truth.untyped_storage().nbytes() <= kept * image.nbytes


def test_samples_of_several_sizes_are_kept():
    model, x, physics, _, _ = sections()
    report = evaluate(model, [x[:1], x[1:, ..., :8]], physics, [], metrics={})
    shapes = [tuple(image.shape) for image in report.pictures["clean"]["x_net"]]
    assert shapes == [(1, 16, 12)] + [(1, 16, 8)] * 3
    # each has its own size and scales
    report.images(samples=[1])
    with pytest.raises(ValueError, match="samples must be of one size"):
        report.images(samples=[0, 1])


def test_pictures_are_kept_in_the_state(tmp_path):
    model, x, physics, _, _ = mri()
    first = evaluate(model, [x[:3], x[3:]], physics, state=tmp_path / "s")
    again = evaluate(model, [x[:3], x[3:]], physics, state=tmp_path / "s")
    for label, pair in first.pictures.items():
        for name, images in pair.items():
            for a, b in zip(images, again.pictures[label][name], strict=True):
                assert torch.equal(a, b)
    with pytest.raises(ValueError, match="differs in pictures"):
        evaluate(model, [x], physics, state=tmp_path / "s", pictures=2)


# What is made of it


def compared(problem, **kwargs):
    model, x, physics, epsilons, shift = problem()
    models = {"first": model, "second": perturbed(problem()[0])}
    kwargs = {"shifts": {"d": shift}} | kwargs
    return evaluate(models, [x], physics, epsilons, **kwargs)


def shown(figure):
    """The arrays of all images, by rows of axes, without colour bars."""
    return [ax.images[0].get_array() for ax in figure.axes if ax.images]


@pytest.mark.parametrize("problem", [mri, sections])
def test_images_are_on_one_scale(problem):
    comparison = compared(problem)
    figure = comparison.images()
    drawn = [ax.images[0] for ax in figure.axes if ax.images]
    # truth and two networks: clean, attacked, errors without a truth, enlarged
    assert len(drawn) == 3 + 3 + 2 + 3
    greys = {im.get_clim() for im in drawn if im.get_cmap().name == "gray"}
    errors = {im.get_clim() for im in drawn if im.get_cmap().name != "gray"}
    assert len(greys) == len(errors) == 1
    (low, high), (least, most) = greys.pop(), errors.pop()
    if problem is mri:
        assert (low, least) == (0, 0) and drawn[6].get_cmap().name == "magma"
    else:
        assert (low, least) == (-high, -most) and drawn[6].get_cmap().name == "RdBu_r"
    arrays = shown(figure)
    label = comparison.reports["first"].attacked().label
    for column, report in enumerate(comparison.reports.values(), 1):
        pair = report.pictures[label]
        size = (lambda z: z.norm(dim=0)) if problem is mri else (lambda z: z[0])
        image, truth = size(pair["x_net"][0]), size(pair["x"][0])
        assert torch.equal(torch.as_tensor(arrays[3 + column].data), image)
        error = torch.as_tensor(arrays[5 + column].data)
        expected = (image - truth).abs() if problem is mri else image - truth
        assert torch.equal(error, expected)


def test_titles_say_the_metric():
    comparison = compared(mri)
    figure = comparison.images(samples=[3], condition="random, eps=2")
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    values = [r.values["clean"]["PSNR"][3] for r in comparison.reports.values()]
    assert titles[1:3] == [f"{name}\n{v:.1f} dB" for name, v in zip(("first", "second"), values)]
    values = [r.values["random, eps=2"]["PSNR"][3] for r in comparison.reports.values()]
    assert titles[4:6] == [f"{v:.1f} dB" for v in values]


def test_what_is_enlarged():
    spots = torch.zeros(2, 1, 32, 24)
    spots[0, 0, 20, 15], spots[1, 0, 22, 17] = 1, 2
    top, left, tall, wide = pictures._largest(list(spots))
    assert (tall, wide) == (8, 8)
    assert top <= 20 < 22 < top + tall and left <= 15 < 17 < left + wide
    # an edit is in the middle, not in a corner
    top, left, tall, wide = pictures._largest([spots[0]])
    assert abs(top + tall / 2 - 20.5) <= 1 and abs(left + wide / 2 - 15.5) <= 1
    # where the truth has contrast, though errors are larger in an empty corner
    truth = torch.zeros(1, 32, 24)
    truth[0, 4:8, 4:8] = 1
    errors = spots[0] + 0.5 * truth
    top, left, tall, wide = pictures._largest([2 * errors], truth)
    assert top < 8 and left < 8
    assert pictures._largest([spots[0]], torch.ones_like(truth)) == pictures._largest([spots[0]])


def test_several_samples_and_conditions(tmp_path):
    comparison = compared(mri)
    figure = comparison.images(samples=2, path=tmp_path / "a.png")
    assert len(shown(figure)) == 2 * 11
    assert (tmp_path / "a.png").stat().st_size > 5000
    figure = comparison.images(condition="clean")
    assert len(shown(figure)) == 3 + 2 + 3
    label, called = "random, eps=2", "random, norm 2"
    named = (comparison.images(condition=name) for name in (label, called))
    first, second = ([ax.get_title() for ax in figure.axes] for figure in named)
    assert first == second and called in comparison.reports["first"].table()
    edited = comparison.images(condition="d")
    truth = comparison.reports["first"].pictures["d"]["x"][0].norm(dim=0)
    assert torch.equal(torch.as_tensor(shown(edited)[3].data), truth)
    alone = comparison.reports["second"].images()
    assert len(shown(alone)) == 2 + 2 + 1 + 2


def test_colours_and_volumes():
    physics = dinv.physics.Denoising(noise())
    for shape, expected in (((3, 16, 12), (16, 12, 3)), ((2, 5, 16, 12), (16, 12))):
        x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
        report = evaluate(Scaled(), [x], physics, [], metrics={})
        arrays = shown(report.images())
        assert arrays[0].shape == arrays[1].shape == expected
        assert arrays[2].shape == (16, 12)
    middle = torch.as_tensor(arrays[0].data)
    assert torch.equal(middle, x[0, :, 2].mean(0))


def test_two_channels_are_complex_where_a_metric_says_so():
    x = torch.rand(1, 2, 16, 12, generator=torch.Generator().manual_seed(0))
    metrics = [dinv.metric.PSNR(complex_abs=True)]
    report = evaluate(Scaled(), [x], dinv.physics.Denoising(noise()), [], metrics=metrics)
    assert torch.equal(torch.as_tensor(shown(report.images())[0].data), x[0].norm(dim=0))


def test_colours_of_any_peak():
    x = 255 * torch.rand(1, 3, 16, 12, generator=torch.Generator().manual_seed(0))
    report = evaluate(Scaled(), [x], dinv.physics.Denoising(noise()), [], metrics={})
    truth = torch.as_tensor(shown(report.images())[0].data)
    assert torch.equal(truth, (x[0] / x.max()).movedim(0, -1))


def test_a_network_that_diverges_does_not_spoil_the_scales():
    class Diverging(torch.nn.Module):
        def forward(self, y, physics):
            image = physics.A_adjoint(y)
            image[:, :, 3, 4] = torch.nan
            return image

    model, x, physics, _, _ = sections()
    both = evaluate({"fine": model, "broken": Diverging()}, [x], physics, [])
    figure = both.images()
    limits = [ax.images[0].get_clim() for ax in figure.axes if ax.images]
    assert all(low == -high and 0 < high < 10 for low, high in limits)


def test_what_is_negative_is_black_in_images_that_are_not():
    x = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0)) + 0.1
    physics = dinv.physics.Denoising(noise(0.0))
    arrays = shown(evaluate(Scaled(-1.0), [x], physics, [], metrics={}).images())
    assert torch.equal(torch.as_tensor(arrays[1].data), -x[0, 0])
    assert torch.equal(torch.as_tensor(arrays[2].data), 2 * x[0, 0])


def test_points_are_scattered():
    comparison = compared(points)
    figure = comparison.images()
    axes = figure.axes
    assert [ax.get_title().split("\n")[0] for ax in axes] == ["first", "second"]
    limits = {(*ax.get_xlim(), *ax.get_ylim()) for ax in axes}
    assert len(limits) == 1
    ((left, right, low, high),) = limits
    assert right - left == pytest.approx(high - low)
    label = comparison.reports["first"].attacked().label
    for ax, report in zip(axes, comparison.reports.values(), strict=True):
        clean, worst, truth = (c.get_offsets() for c in ax.collections)
        for offsets, images in (
            (clean, report.pictures["clean"]["x_net"]),
            (worst, report.pictures[label]["x_net"]),
            (truth, report.pictures[label]["x"]),
        ):
            expected = torch.stack(images).double()
            assert torch.equal(torch.as_tensor(offsets.data), expected)
    few = comparison.images(samples=2)
    assert len(few.axes[0].collections[0].get_offsets()) == 2


def test_points_of_a_network_that_diverges_do_not_spoil_the_picture():
    model, x, physics, _, _ = points()
    comparison = evaluate({"fine": model, "broken": Scaled(float("nan"))}, [x], physics, [])
    fine = comparison.reports["fine"].images()
    assert comparison.images().axes[0].get_xlim() == fine.axes[0].get_xlim()


def test_truths_smaller_than_the_reconstruction():
    class Middle(dinv.loss.metric.Metric):
        def metric(self, x_net, x, *args, **kwargs):
            return (x_net[..., 2:11, 1:10] - x).square().flatten(1).mean(1)

    y = torch.rand(1, 1, 13, 11, generator=torch.Generator().manual_seed(0))
    attack = dj.RandomAttack(dj.L2Ball(1.0), samples=2, objective=Middle())
    physics = dinv.physics.Denoising(noise())
    data = [(y[..., 2:11, 1:10], y)]
    report = evaluate(Scaled(), data, physics, [], attacks=attack, metrics=Middle())
    truth, image, error, *_ = shown(report.images())
    assert (truth == image).all() and not error.any() and truth.shape == (9, 9)


def test_truths_larger_than_the_reconstruction():
    """As of networks whose convolutions are not padded."""

    class Valid(torch.nn.Module):
        def forward(self, y, physics):
            return y[..., 2:11, 1:10]

    class Middle(dinv.loss.metric.Metric):
        def metric(self, x_net, x, *args, **kwargs):
            return (x_net - x[..., 2:11, 1:10]).square().flatten(1).mean(1)

    x = torch.rand(1, 1, 13, 11, generator=torch.Generator().manual_seed(0))
    attack = dj.RandomAttack(dj.L2Ball(1.0), samples=2, objective=Middle())
    physics = dinv.physics.Denoising(noise())
    report = evaluate(Valid(), [(x, x)], physics, [], attacks=attack, metrics=Middle())
    truth, image, error, *_ = shown(report.images())
    assert (truth == image).all() and not error.any() and truth.shape == (9, 9)


REFUSED = [
    ({"samples": 5}, r"among the 4 that the evaluation kept, got \[0, 1, 2, 3, 4\]"),
    ({"samples": []}, r"samples must be among the 4 .* got \[\]"),
    ({"condition": "sunny"}, "condition must be among .*'clean'.* got 'sunny'"),
]


@pytest.mark.parametrize("arguments, message", REFUSED)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compared(mri).images(**arguments)


def test_refused_shapes():
    with pytest.raises(ValueError, match="'first' has none: evaluate with pictures"):
        compared(mri, pictures=0).images()
    physics = dinv.physics.Denoising(noise())
    for shape, message in (
        ((3,), r"points \(B, 2\) of the plane, got 3 coordinates"),
        ((1, 20), r"images shows images .* got samples of shape \(1, 20\)"),
    ):
        report = evaluate(Scaled(), [torch.rand(2, *shape)], physics, [], metrics={})
        with pytest.raises(ValueError, match=message):
            report.images()
    with pytest.raises(ValueError, match="samples must be .* at least 1, got 0"):
        compared(mri).images(samples=0)


def test_vector_graphics_have_text(tmp_path):
    compared(mri).images(path=tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "<text" in text and "worst case, norm 0.5" in text
    dj.RobustnessComparison(compared(points).reports).images(path=tmp_path / "b.pdf")
    assert b"/Type3" not in (tmp_path / "b.pdf").read_bytes()
