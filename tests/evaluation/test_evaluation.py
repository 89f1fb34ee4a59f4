import copy
import functools
import itertools
import math

import deepinv as dinv
import pytest
import torch
from deepinv.loss.metric import MAE, PSNR, Metric
from evaluation_cases import (
    ERROR,
    FAST,
    PROBLEMS,
    assert_same_values,
    evaluate,
    measured,
    mri,
    noise,
    perturbed,
    points,
    sections,
)
from properties import assert_global_rng_untouched, assert_same_parameters
from torch.utils.data import DataLoader

import deepinv_jitter as dj
from deepinv_jitter.attacks import Attack, FrankWolfeAttack, PGDAttack, RandomAttack, WorstCase
from deepinv_jitter.attacks.balls import L2Ball, LinfBall
from deepinv_jitter.evaluation import cache
from deepinv_jitter.evaluation.robustness import evaluate_robustness
from deepinv_jitter.evaluation.shifts import Bias, Lesion

# What a report says


def test_the_error_does_not_fall_as_eps_grows(case):
    errors = [case.values[c.label][ERROR] for c in case.conditions if c.kind == "worst case"]
    for smaller, larger in itertools.pairwise(errors):
        assert (larger >= smaller).all()


def test_the_worst_case_is_worse_than_random_perturbations(case):
    for condition in case.conditions:
        if condition.kind == "worst case" and condition.eps > 0:
            worst = case.values[condition.label]
            drawn = case.values[condition.label.replace("worst case", "random")]
            assert (worst[ERROR] > drawn[ERROR]).all()
            assert (drawn["worst draw"] >= drawn[ERROR]).all()
            assert not worst["random_beats_attack"].any()


def test_eps_0_is_clean(case):
    clean = case.values["clean"]
    for name in case.metrics:
        if name in clean:
            assert torch.equal(case.values["worst case, eps=0"][name], clean[name])
            drawn = case.values["random, eps=0"][name]
            assert torch.allclose(drawn, clean[name], rtol=1e-12)
    assert not case.values["worst case, eps=0"]["|delta|"].any()


def test_perturbations_are_as_large_as_they_claim(case):
    for condition in case.conditions:
        columns = case.values[condition.label]
        if condition.kind == "worst case":
            assert torch.allclose(columns["|delta|"], columns["radius"], rtol=1e-5)
        if condition.eps is not None:
            assert torch.allclose(columns["|dy|/|y|"], columns["radius/|y|"], rtol=1e-5)
            # all our physics have an operator norm of 1 at most
            assert (columns["|A'dy|"] <= columns["radius"] * (1 + 1e-5)).all()
            assert (columns["eps"] == condition.eps).all()
            assert torch.allclose(columns["radius"], columns["eps"])


def test_shifts_have_detail_scores(case):
    columns = case.values[case.conditions[-1].label]
    assert columns["contrast recovery"].isfinite().all()
    assert case.metrics["contrast recovery"] == 1
    assert case.metrics["error outside"] == -math.inf


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_size_of_the_batches_does_not_matter(problem):
    model, x, physics, epsilons, shift = problem()
    alone = evaluate(model, list(x.split(1)), physics, epsilons, shifts=shift)
    together = evaluate(model, [x], physics, epsilons, shifts=shift)
    assert_same_values(alone, together, 1e-4)


def test_values_by_hand():
    """Gradient descent with step 1 and no prior denoises by doing nothing."""
    model = dj.UnfoldedGD(dj.PointMLP(), stepsize=1.0, max_iter=1)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0 if p.ndim else 1)
    x, y = torch.zeros(2, 2), torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    physics = dinv.physics.Denoising(noise(0.5))
    report = evaluate(model, [(x, y)], physics, [1.0], shifts={"b": Bias((2.0, 0))})
    assert report.values["clean"][ERROR].tolist() == pytest.approx([25, 4])
    worst = report.values["worst case, eps=1"]
    assert worst[ERROR].tolist() == pytest.approx([36, 9], rel=1e-5)
    assert worst["radius/|y|"].tolist() == pytest.approx([0.2, 0.5])
    assert worst["radius/|noise|"].tolist() == pytest.approx([2**0.5] * 2)
    # A' is the identity: the model returns it
    for columns in report.values.values():
        references = [columns[f"squared error of {name}"] for name in ("0", "A'y")]
        assert references[0].tolist() == ([4, 4] if columns is report.values["b"] else [0, 0])
        assert torch.allclose(references[1], columns[ERROR])
    # The noise stays: the reconstruction moves with the truth
    shifted = report.values["b"]
    assert shifted[ERROR].tolist() == pytest.approx([25, 4])
    assert shifted["contrast recovery"].tolist() == pytest.approx([1, 1])
    # The unchanged coordinate alone
    assert shifted["error outside"].tolist() == pytest.approx([4, 2])


def test_random_perturbations_give_the_mean_of_every_metric():
    model, x, physics, _, _ = points()
    many = evaluate(model, [x], physics, [0.5], draws=200, metrics={"mae": MAE()})
    drawn = many.values["random, eps=0.5"]
    one = evaluate(model, [x], physics, [0.5], draws=1, metrics={"mae": MAE()})
    single = one.values["random, eps=0.5"]
    assert torch.equal(single[ERROR], single["worst draw"])
    assert (drawn["worst draw"] >= single["worst draw"]).all()
    assert not torch.allclose(drawn["mae"], single["mae"])


def test_default_metrics():
    names = {points: [ERROR], mri: [ERROR, "PSNR", "SSIM"], sections: [ERROR, "PSNR", "SSIM"]}
    for problem, expected in names.items():
        model, x, physics, _, _ = problem()
        report = evaluate(model, [x[:1]], physics, [])
        assert list(report.metrics) == expected
    # Smaller than the window of SSIM
    assert list(evaluate(model, [x[..., :8]], physics, []).metrics) == [ERROR, "PSNR"]


def test_own_metrics_and_their_directions():
    model, x, physics, _, _ = mri()
    metrics = {"crop": PSNR(center_crop=8), "mae": MAE(), "loss": PSNR(train_loss=True)}
    report = evaluate(model, [x], physics, [], metrics=metrics)
    inf = math.inf
    assert report.metrics == {ERROR: -inf, "crop": inf, "mae": -inf, "loss": -inf}
    clean = report.values["clean"]
    with torch.no_grad():
        y = measured(physics, x)
        expected = PSNR(center_crop=8)(model(y, physics), x).double()
    assert torch.allclose(clean["crop"], expected)


@pytest.mark.parametrize("ball, factor", [(L2Ball, 0.1), (LinfBall, 0.1)])
def test_radii_in_the_unit_of_the_budget(ball, factor):
    model, x, physics, _, _ = mri()
    attack = FrankWolfeAttack(ball(5.0, relative_to="noise"), steps=2, checks=False)
    report = evaluate(model, [x], physics, [2.0], attacks=attack)
    columns = report.values["worst case, eps=2"]
    assert torch.allclose(columns["radius/|noise|"], torch.tensor(2.0).double())
    assert (columns["eps"] == 2).all() and report.description["unit"] == "noise"
    assert torch.allclose(columns["|delta|"], columns["radius"], rtol=1e-5)


def test_image_domain_budgets_and_other_noise_have_no_such_units():
    model, x, physics, _, _ = mri()
    attack = FrankWolfeAttack(L2Ball(1.0, domain="image"), steps=2, checks=False)
    columns = evaluate(model, [x], physics, [2.0], attacks=attack).values["worst case, eps=2"]
    assert columns["radius/|y|"].isnan().all()
    assert columns["radius/|noise|"].isnan().all()
    assert torch.allclose(columns["|delta|"], torch.tensor(2.0).double())
    physics.noise_model = dinv.physics.UniformNoise(0.1)
    columns = evaluate(model, [x], physics, [2.0]).values["worst case, eps=2"]
    assert columns["radius/|y|"].isfinite().all()
    assert columns["radius/|noise|"].isnan().all()


@pytest.mark.parametrize("name", ["quick", "standard", "paper"])
def test_presets(name):
    model, x, physics, _, _ = points()
    report = evaluate(model, [x[:3]], physics, [0.1], attacks=name)
    cost = report.values["worst case, eps=0.1"]["gradients"]
    assert cost.tolist() == [{"quick": 10, "standard": 160, "paper": 20}[name]] * 3


def test_the_paper_preset_is_the_papers_attack():
    model, x, physics, _, _ = mri()
    y = measured(physics, x)
    report = evaluate(model, [(x, y)], physics, [1.0], attacks="paper")
    delta = PGDAttack.paper(1.0)(model, x, y, physics)
    with torch.no_grad():
        expected = (model(y + delta, physics) - x).double().square().flatten(1).sum(1)
    assert torch.allclose(report.values["worst case, eps=1"][ERROR], expected)


def test_several_attacks_count_as_their_worst():
    model, x, physics, _, _ = points()
    both = [FAST, RandomAttack(L2Ball(1.0), samples=3, checks=False)]
    report = evaluate(model, [x], physics, [0.5], attacks=both)
    given = evaluate(model, [x], physics, [0.5], attacks=WorstCase(both))
    assert_same_values(report, given)


# Data


def test_all_formats_of_data_give_the_same():
    model, x, physics, epsilons, _ = mri()
    y = measured(physics, x)
    sets = dinv.datasets.TensorDataset(x=x, y=y, use_dict_output=True)
    reports = [
        evaluate(model, data, physics, epsilons)
        for data in ([{"x": x, "y": y}], [(x, y)], [(x, y, {})], DataLoader(sets, batch_size=3))
    ]
    for report in reports[1:]:
        assert_same_values(reports[0], report, 1e-4)
    made = evaluate(model, [x], physics, epsilons)
    for label in made.values:
        assert torch.equal(made.values[label][ERROR], reports[0].values[label][ERROR])


def test_parameters_of_the_physics_reach_it_and_leave_it():
    model, x, physics, _, _ = mri()
    masks = torch.zeros(5, 1, 16, 16)
    masks[:, :, :, ::2] = 1
    masks[2:, :, :, 5] = 1
    before = physics.mask.clone()
    data = [{"x": x, "params": {"mask": masks}}]
    together = evaluate(model, data, physics)
    assert torch.equal(physics.mask, before)
    other = [{"x": x[i : i + 1], "params": {"mask": masks[i : i + 1]}} for i in range(5)]
    assert_same_values(together, evaluate(model, other, physics), 1e-4)
    plain = evaluate(model, [x], physics)
    assert not torch.equal(plain.values["clean"][ERROR], together.values["clean"][ERROR])


def test_every_model_sees_the_same_measurements():
    class Spy(torch.nn.Module):
        def forward(self, y, physics):
            seen.append(y.clone())
            return 1.0 * y

    generator = torch.Generator().manual_seed(5)
    for noise_model in (noise(), dinv.physics.GaussianNoise(0.1, rng=generator)):
        physics = dinv.physics.Denoising(noise_model)
        ys = []
        for seed in (0, 0, 1):
            seen = []
            torch.rand(3)
            physics(torch.zeros(1, 2))
            evaluate(Spy(), [torch.zeros(4, 2)], physics, [], seed=seed)
            ys.append(seen[0])
        assert torch.equal(ys[0], ys[1]) and not torch.equal(ys[0], ys[2])
        assert len(ys[0].unique()) == 8


def test_a_shuffling_loader_has_one_order():
    model, _, physics, _, _ = points()
    loader = DataLoader(torch.arange(20.0).reshape(10, 2), batch_size=4, shuffle=True)
    first, second = (evaluate(model, loader, physics) for _ in range(2))
    assert_same_values(first, second)


# Nothing but a report is left behind


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(fails):
    generator = torch.Generator().manual_seed(3)
    model, x, _, epsilons, shift = mri()
    mask = torch.ones(16)
    mask[3] = 0
    physics = dj.SingleCoilMRI(
        mask, img_size=(16, 16), noise_model=dinv.physics.GaussianNoise(0.1, rng=generator)
    )
    dj.jitter(model, 0.1).train()
    frozen = next(model.fixed_point.iterator.children())
    frozen.eval()
    modes = [m.training for m in model.modules()]
    buffers = {name: b.clone() for name, b in physics.state_dict().items()}
    attributes = {name: id(value) for name, value in vars(physics).items()}
    state, weights = generator.get_state(), copy.deepcopy(model)
    data = [{"x": x, "params": {"mask": torch.ones(5, 1, 16, 16), "sigma": torch.tensor(0.3)}}]

    def broken(x_net, x):
        raise OverflowError("broken metric")

    metrics = {"broken": Metric(broken)} if fails else None
    loader = DataLoader([x[0], x[1]], batch_size=1, shuffle=True)
    with assert_global_rng_untouched():
        for batches in (data, loader):
            try:
                evaluate(model, batches, physics, epsilons, shifts=shift, metrics=metrics)
                assert not fails
            except OverflowError:
                assert fails
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert_same_parameters(model, weights)
    assert {name: id(value) for name, value in vars(physics).items()} == attributes
    assert list(buffers) == list(physics.state_dict())
    for name, buffer in physics.state_dict().items():
        assert torch.equal(buffer, buffers[name])
    assert torch.equal(generator.get_state(), state)
    assert all(m.enabled for m in model.modules() if isinstance(m, dj.Jitter))


def test_jitter_is_silent():
    model, x, physics, epsilons, _ = mri()
    plain = evaluate(model, [x], physics, epsilons)
    jittered = evaluate(dj.jitter(model, 0.5).train(), [x], physics, epsilons)
    for label in plain.values:
        assert torch.equal(plain.values[label][ERROR], jittered.values[label][ERROR])
    assert jittered.flags == {"model_in_train_mode": {"all": 5}} | plain.flags


# Flags


def test_flags_of_the_attack_surface():
    class Rough(torch.nn.Module):
        """Its gradient says nothing of its slope."""

        def forward(self, y, physics):
            return y + 3 * (torch.round(20 * y) - 20 * y).detach()

    _, x, physics, _, _ = points()
    attack = FrankWolfeAttack(L2Ball(1.0), steps=5)
    report = evaluate(Rough(), [x[:4], x[4:]], physics, [0.1], attacks=attack)
    assert report.flags["gradient_masking"]["worst case, eps=0.1"] > 0
    assert "FLAG gradient_masking" in report.table()
    smooth = evaluate(points()[0], [x], physics, [0.1], attacks=attack)
    assert "gradient_masking" not in smooth.flags


def test_a_weak_attack_is_told_by_the_random_draws():
    class Nothing(RandomAttack):
        def search(self, problem, delta):
            return problem.zero

    model, x, physics, _, _ = points()
    attack = Nothing(L2Ball(1.0), samples=1, checks=False)
    report = evaluate(model, [x], physics, [0.5], attacks=attack)
    assert report.flags["random_beats_attack"] == {"worst case, eps=0.5": 7}
    assert "random_beats_attack, worst case at norm 0.5: 7 of 7" in report.table()


# Resume


class Interrupting(Metric):
    """Fails at the k-th call."""

    def __init__(self, fuse=math.inf):
        super().__init__()
        self._calls, self._fuse = 0, fuse

    def metric(self, x_net, x, *args, **kwargs):
        self._calls += 1
        if self._calls == self._fuse:
            raise KeyboardInterrupt
        return (x_net - x).abs().flatten(1).amax(1)


# Calls: truths 1, clean 1, random 2 + 2, worst 1 + 1, shift 2; for two batches
@pytest.mark.parametrize(
    "problem, fuse",
    [(points, 1), (points, 3), (points, 7), (points, 8), (points, 9), (points, 16), (points, 20)]
    + [(mri, 7), (mri, 15), (sections, 7)],
)
def test_resumed_is_uninterrupted_bit_for_bit(problem, fuse, tmp_path):
    model, x, physics, epsilons, shift = problem()
    attack = FrankWolfeAttack(L2Ball(1.0), steps=2)
    kwargs = {"shifts": shift, "attacks": attack, "draws": 2}
    batches = DataLoader(list(x), batch_size=4, shuffle=True)
    state = tmp_path / "run.state"
    with pytest.raises(KeyboardInterrupt):
        evaluate(
            model, batches, physics, epsilons, state=state,
            metrics={"max": Interrupting(fuse)}, **kwargs
        )  # fmt: skip
    resumed = evaluate(
        model, batches, physics, epsilons, state=state, metrics={"max": Interrupting()}, **kwargs
    )
    whole = evaluate(model, batches, physics, epsilons, metrics={"max": Interrupting()}, **kwargs)
    assert_same_values(resumed, whole)
    assert resumed.table("csv") == whole.table("csv")
    assert [file.name for file in tmp_path.iterdir()] in (["run.state"], [])


def test_a_random_model_resumes_as_well(tmp_path):
    class Random(torch.nn.Module):
        def forward(self, y, physics):
            return y + 0.1 * torch.randn_like(y)

    _, x, physics, epsilons, shift = points()
    loader = DataLoader(list(x), batch_size=4, shuffle=True)
    kwargs = {"shifts": shift, "metrics": {"max": Interrupting(11)}}
    with pytest.raises(KeyboardInterrupt):
        evaluate(Random(), loader, physics, epsilons, state=tmp_path / "s", **kwargs)
    kwargs["metrics"] = {"max": Interrupting()}
    resumed = evaluate(Random(), loader, physics, epsilons, state=tmp_path / "s", **kwargs)
    assert_same_values(resumed, evaluate(Random(), loader, physics, epsilons, **kwargs))


def test_a_finished_state_costs_one_reconstruction_of_each_batch(tmp_path):
    model, x, physics, epsilons, shift = points()
    state = str(tmp_path / "run.state")
    first = evaluate(model, [x], physics, epsilons, shifts=shift, state=state)
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    again = evaluate(model, [x], physics, epsilons, shifts=shift, state=state)
    assert_same_values(first, again)
    assert again.seconds == first.seconds and len(calls) == 1


def far(x_net, x, power):
    return (x_net - x).abs().flatten(1).amax(1) ** power


def farthest(power):
    return lambda x_net, x: far(x_net, x, power)


class Times(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, y, physics):
        return self.factor * y


NETWORK = perturbed(dj.PointMLP())


def unrolled(max_iter):
    return dj.UnfoldedGD(NETWORK, max_iter=max_iter, trainable_params=[])


class Power(dinv.physics.Physics):
    def __init__(self, power):
        super().__init__()
        self.power = power

    def A(self, x, **kwargs):
        return x**self.power


def searching(objective):
    return FrankWolfeAttack(L2Ball(1.0), steps=2, checks=False, objective=objective)


# What neither weights and buffers nor names tell, in a first call and in the next
UNTOLD = {
    "attribute": ({"model": Times(0.5)}, {"model": Times(0.6)}),
    "iterations": ({"model": unrolled(2)}, {"model": unrolled(3)}),
    "physics": ({"physics": Power(1)}, {"physics": Power(3)}),
    "metric": tuple({"metrics": {"far": Metric(farthest(p))}} for p in (1, 2)),
    "objective": tuple({"attacks": searching(farthest(p))} for p in (1, 2)),
    "partial": tuple({"attacks": searching(functools.partial(far, power=p))} for p in (1, 2)),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_a_state_of_what_gives_other_results_is_refused(name, tmp_path):
    before, after = UNTOLD[name]
    arguments = {"model": Times(1), "data": [points()[1]], "physics": dinv.physics.Denoising()}
    evaluate(**arguments | before, epsilons=[0.1], state=tmp_path / "s")
    evaluate(**arguments | before, epsilons=[0.1], state=tmp_path / "s")
    with pytest.raises(ValueError, match="state must be of this very .*gives other results"):
        evaluate(**arguments | after, epsilons=[0.1], state=tmp_path / "s")


def test_a_state_is_plain_data(tmp_path):
    model, x, physics, epsilons, _ = points()
    evaluate(model, [x], physics, epsilons, state=tmp_path / "s")
    # By weights_only
    (_, first), (end, batch) = cache._records(tmp_path / "s")
    assert first["description"]["seed"] == "0" and batch["index"] == 0
    assert [*tmp_path.iterdir()] == [tmp_path / "s"] and end == (tmp_path / "s").stat().st_size


@pytest.mark.parametrize("cut", [1, 100])
def test_a_state_that_was_cut_off_goes_on_with_the_batches_that_are_whole(cut, tmp_path):
    """Each batch is written to the end of the file once, whatever there is before it."""
    model, x, physics, epsilons, _ = points()
    whole, path = (tmp_path / name for name in ("whole", "s"))
    first = evaluate(model, [x, x], physics, epsilons, state=whole)
    (start, _), (middle, _), (end, _) = cache._records(whole)
    assert end - middle == middle - start
    path.write_bytes(whole.read_bytes()[:-cut])
    assert_same_values(first, evaluate(model, [x, x], physics, epsilons, state=path))
    assert [place for place, _ in cache._records(path)] == [start, middle, end]


OTHER = {
    "seed": {"seed": 1},
    "draws": {"draws": 4},
    "conditions": {"epsilons": [0.2]},
    "attack": {"attacks": FrankWolfeAttack(L2Ball(1.0), steps=4, checks=False)},
    "attack settings": {"attacks": FrankWolfeAttack(L2Ball(1.0), steps=3, checks=False, seed=5)},
    "metrics": {"metrics": {"mae": MAE()}},
    "shifts": {"shifts": {"bias": Bias(0.2)}},
    "physics": {"physics": dinv.physics.Denoising(noise(0.2))},
    "batch 0": {"data": torch.ones(2, 2)},
}


@pytest.mark.parametrize("name", OTHER)
def test_a_state_of_another_evaluation_is_refused(name, tmp_path):
    model, x, physics, _, _ = points()
    arguments = {
        "data": x[:2],
        "physics": physics,
        "epsilons": [0.1],
        "shifts": {"bias": Bias(0.1)},
    }

    def run(**changes):
        kwargs = arguments | changes
        evaluate(model, [kwargs.pop("data")], kwargs.pop("physics"), state=tmp_path / "s", **kwargs)

    run()
    with pytest.raises(ValueError, match=f"state must be of this very .*{name}.*another file"):
        run(**OTHER[name])
    run()


def test_a_state_of_another_model_or_number_of_batches_is_refused(tmp_path):
    model, x, physics, _, _ = points()
    evaluate(model, [x[:4], x[4:]], physics, state=tmp_path / "s")
    with pytest.raises(ValueError, match="holds 2 batches instead of 1"):
        evaluate(model, [x[:4]], physics, state=tmp_path / "s")
    with torch.no_grad():
        next(model.parameters()).add_(1e-6)
    with pytest.raises(ValueError, match="differs in model"):
        evaluate(model, [x[:4], x[4:]], physics, state=tmp_path / "s")


def test_other_files_are_no_states(tmp_path):
    model, x, physics, _, _ = points()
    (tmp_path / "s").write_text("hello")
    with pytest.raises(ValueError, match="state must be a file that evaluate_robustness wrote"):
        evaluate(model, [x], physics, state=tmp_path / "s")
    assert (tmp_path / "s").read_text() == "hello"
    with pytest.raises(ValueError, match="in a folder that exists, got .*missing"):
        evaluate(model, [x], physics, state=tmp_path / "missing" / "s")


# Errors


class Wrong(torch.nn.Module):
    def forward(self, y, physics):
        return y[:, :1]


class Real(torch.nn.Module):
    def forward(self, y, physics):
        return y.real


class Pair(torch.nn.Module):
    def forward(self, y, physics):
        return y, y


X = torch.zeros(2, 2)
REFUSED = [
    ({"model": "net"}, TypeError, "model must be a torch.nn.Module, .* got str"),
    ({"model": {}}, ValueError, "model must be a network, or several .* got none"),
    ({"model": {"a": Pair(), "b": 3}}, TypeError, "a dictionary .* got int for 'b'"),
    ({"model": {1: Pair()}}, TypeError, "a dictionary of names .* got Pair for 1"),
    ({"model": {"": Pair()}}, ValueError, "names of models must have letters, got ''"),
    ({"pictures": -1}, ValueError, "pictures must be .* at least 0, got -1"),
    (
        {"model": Real(), "dataloader": [(X + 0j, X + 0j)]},
        TypeError,
        "must be complex if x is, .* got torch.float32 for x of torch.complex64",
    ),
    ({"model": Wrong()}, ValueError, r"shape of x, \(2, 2\), got \(2, 1\)"),
    ({"physics": None}, TypeError, "physics must be a deepinv Physics, got NoneType"),
    ({"dataloader": []}, ValueError, "dataloader must give at least one batch, got none"),
    ({"dataloader": [{"y": X}]}, ValueError, r"needs the truth x, .* got \['y'\]"),
    ({"dataloader": [(torch.nan, X)]}, ValueError, r"needs the truth x"),
    ({"dataloader": [{"x": [1]}]}, TypeError, "x must be a torch.Tensor, got list"),
    ({"dataloader": [{"x": X, "y": [1]}]}, TypeError, "y must be a torch.Tensor, got list"),
    ({"dataloader": [(X, X[:1])]}, ValueError, r"one batch size, got 2 and 1\."),
    ({"epsilons": [-0.1, 1]}, ValueError, "epsilons must be .* at least 0, got -0.1"),
    ({"epsilons": [math.nan]}, ValueError, "epsilons must be finite .* got nan"),
    ({"epsilons": [True]}, TypeError, "epsilons must be a number, got True"),
    ({"epsilons": ["big"]}, TypeError, "epsilons must be a number, got 'big'"),
    ({"epsilons": [10**400]}, ValueError, "epsilons must be finite and at least 0"),
    ({"epsilons": [1e39]}, ValueError, "radius must be finite in the precision of y"),
    ({"dataloader": 3}, TypeError, "dataloader must be iterable, got int"),
    ({"dataloader": [None]}, TypeError, "every batch must be .* got NoneType"),
    ({"dataloader": [X.int()]}, TypeError, "x must be .* got torch.int32"),
    ({"dataloader": [X[:0]]}, ValueError, "x must be a batch .* and not empty"),
    ({"dataloader": [X / 0]}, ValueError, "x must be finite, got NaN or infinity in 2"),
    ({"dataloader": [(X, X / 0)]}, ValueError, "y must be finite, got NaN or infinity"),
    ({"model": Pair()}, TypeError, "the model must return a torch.Tensor, got tuple"),
    ({"shifts": "bias"}, TypeError, "shifts must be a Shift, .* got 'bias'"),
    ({"shifts": 3}, TypeError, "shifts must be a Shift, .* got 3"),
    ({"epsilons": "0.5"}, TypeError, "epsilons must be a radius or several, got '0.5'"),
    ({"epsilons": None}, TypeError, "epsilons must be a radius or several, got None"),
    ({"attacks": "strong"}, ValueError, "one of .*'standard'.* got 'strong'"),
    ({"attacks": []}, ValueError, "attacks must hold at least one attack"),
    ({"attacks": [1]}, TypeError, "each of attacks must be a dj.Attack, got int"),
    ({"metrics": "PSNR"}, TypeError, "in a list or a dictionary of names, got str"),
    ({"metrics": [abs]}, TypeError, "deepinv metrics, got builtin_function_or_method"),
    ({"metrics": {"m": abs}}, TypeError, "got builtin_function_or_method for 'm': wrap"),
    ({"metrics": {1: MAE()}}, TypeError, "must be called by words, got the name 1"),
    ({"metrics": {"eps": MAE()}}, ValueError, "must not be called 'eps'"),
    ({"metrics": {"m": MAE(reduction="mean")}}, ValueError, r"shape \(2,\), got \(\): set red"),
    ({"shifts": [0.1]}, TypeError, "shifts must be a Shift, .* got 0.1"),
    ({"shifts": Lesion(2, 0.1)}, ValueError, r"images must have shape \(B, C, H, W\)"),
    ({"shifts": Bias((1, 2, 3))}, ValueError, "value must broadcast to a sample"),
    ({"shifts": {1: Bias(1)}}, TypeError, "shifts must be called by words, got the name 1"),
    ({"shifts": {"clean": Bias(1)}}, ValueError, "must not be called like other conditions"),
    ({"shifts": {"worst case": Bias(1)}}, ValueError, r"conditions, got \['worst case'\]"),
    ({"draws": 0}, ValueError, "draws must be .* at least 1, got 0"),
    ({"draws": 2.5}, TypeError, "draws must be a whole number, got 2.5"),
    ({"seed": -1}, ValueError, "seed must be .* lie from 0 to .* got -1"),
    ({"seed": 2**64}, ValueError, "seed must be .* lie from 0 to"),
]


@pytest.mark.parametrize("changes, error, message", REFUSED)
def test_refused(changes, error, message):
    arguments = {
        "model": points()[0],
        "dataloader": [X],
        "physics": dinv.physics.Denoising(noise()),
        "epsilons": [],
        "verbose": False,
    } | changes
    with pytest.raises(error, match=message):
        evaluate_robustness(**arguments)


def test_refused_physics():
    model = points()[0]
    nonlinear = dinv.physics.Physics(A=lambda x, **kwargs: x**2)
    with pytest.raises(TypeError, match="shifts need a linear physics.* got Physics"):
        evaluate(model, [X], nonlinear, [], shifts=Bias(1))
    model, x, *_ = mri()
    # deepinv's own, as ours refuses five masks for one image
    physics = dinv.physics.MRI(torch.ones(5, 1, 16, 16))
    with pytest.raises(ValueError, match=r"one by one.* got \(5, 2, 16, 16\) for one sample"):
        evaluate(model, [x], physics)


def test_model_without_gradient_is_refused_by_the_attack():
    model = dinv.optim.GD(prior=dinv.optim.Tikhonov(), max_iter=2, stepsize=0.5)
    with pytest.raises(RuntimeError, match="unfold=True, or use RandomAttack"):
        evaluate(model, [X], dinv.physics.Denoising(noise()))
    attack = RandomAttack(L2Ball(1.0), samples=4, checks=False)
    report = evaluate(model, [X], dinv.physics.Denoising(noise()), attacks=attack)
    assert isinstance(attack, Attack) and len(report.digests) == 2


def test_on_the_device_of_the_model(device):
    model, x, physics, epsilons, shift = mri()
    reference = evaluate(model, [x], physics, epsilons, shifts=shift)
    y = measured(physics, x)
    report = evaluate(model.to(device), [(x, y)], physics.to(device), epsilons, shifts=shift)
    for label, columns in reference.values.items():
        values = report.values[label][ERROR]
        assert values.device.type == "cpu"
        assert torch.allclose(values, columns[ERROR], rtol=1e-2)
