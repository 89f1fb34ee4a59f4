"""
Devices: a GPU is not waited for in any loop, on the meta device and on one that is pretended.

``examples/benchmarks/copies.py`` pretends a device with values, which counts copies, knows no
double precision and lets no tensor of the CPU pass for one of its own.
"""

import functools
import pickle
import sys
from pathlib import Path

import deepinv as dinv
import pytest
import torch
from torch.utils.data import DataLoader

import deepinv_jitter as dj
from deepinv_jitter import checks, memory
from deepinv_jitter.optim import hooks, noise
from deepinv_jitter.training import distributed, rng
from deepinv_jitter.training.carried import Carried

FOLDER = Path(__file__).parent.parent / "examples" / "benchmarks"
sys.path.insert(0, str(FOLDER))

import copies  # noqa: E402
from copies import ATTACKS, BALL, CASES, TRAINERS  # noqa: E402

SCALES = ("std", "norm", "relative", "official")
CASE = CASES["sections"]


@pytest.fixture
def far():
    """The pretended device."""
    with copies.pretended() as device:
        yield device


def to_cpu(thing):
    """What a function gave, on the CPU."""
    return torch.utils._pytree.tree_map(
        lambda t: t.cpu() if isinstance(t, torch.Tensor) else t, thing
    )


def test_the_pretended_device_counts_and_refuses_as_a_gpu(far):
    x = torch.ones(3, 2, device="meta")
    assert far.count(lambda: (2 * x).sum().item()) == (1, 0)
    assert far.count(lambda: bool((x > 0).all())) == (1, 0)
    assert far.count(lambda: x[x > 0]) == (1, 0)
    assert far.count(lambda: (x > 0).nonzero()) == (1, 0)
    assert far.count(lambda: torch.allclose(x, x)) == (1, 0)
    assert far.count(lambda: torch.ones(2).to("meta").cpu()) == (1, 1)
    assert far.count(lambda: torch.where(x > 0, x, 0) @ x.mT + torch.tensor(1.0)) == (0, 0)
    assert (2 * x).cpu().tolist() == [[2, 2]] * 3
    with pytest.raises(RuntimeError, match="on meta and on the CPU"):
        x + torch.ones(3, 2)
    with pytest.raises(RuntimeError, match="generator on the CPU"):
        torch.randn(2, generator=torch.Generator(), device="meta")
    with pytest.raises(TypeError, match="no double precision"):
        x.double()
    z = torch.complex(x, 2 * x)
    assert ((z.conj() * z).cpu() == 5).all() and (z.conj().imag.cpu() == -2).all()
    with pytest.raises(RuntimeError, match="no complex norms"):
        torch.linalg.vector_norm(z)


# No copies in a loop


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("scale", SCALES)
def test_a_pass_copies_nothing(scale, checkpoint, case, far):
    model = copies.model_of(CASES[case], checkpoint=checkpoint)
    dj.jitter(model, dj.GaussianJitter(0.1, scale))
    assert copies.of_pass(far, CASES[case], model) == (0, 0)


@pytest.mark.parametrize("case", CASES)
def test_nor_does_one_recomputed_with_buffers_that_change(case, far):
    model = copies.normalized(CASES[case], jitter=0.1, max_iter=3, checkpoint=True)
    assert copies.of_pass(far, CASES[case], model) == (0, 0)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("case", CASES)
def test_shapes_can_be_tried_on_the_meta_device_itself(case, scale):
    _, y, physics = copies.problem(CASES[case])
    model = copies.model_of(CASES[case], checkpoint=True)
    dj.jitter(model, dj.GaussianJitter(0.1, scale))
    x_net = model(y, physics)
    x_net.sum().backward()
    assert x_net.is_meta and x_net.shape == CASES[case].truth().shape
    with pytest.raises(ValueError, match="x and y must hold values, got .* the meta device"):
        dj.PGDAttack(BALL)(model, x_net.detach(), y, physics)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_look_at_their_input_alone(name, case, far):
    few, more = (copies.of_attack(far, CASES[case], ATTACKS[name](n)) for n in (2, 7))
    assert few == more
    # The values of x and y, and of radius and noise where they are no plain number; the entries
    # that may be perturbed follow from numbers of the CPU
    assert more == ((4, 2) if "noise" in name else (1, 1))


@pytest.mark.parametrize("case", CASES)
def test_random_draws_come_from_the_cpu_one_by_one(case, far):
    """The same numbers on every device."""
    for n in (2, 7):
        attack = dj.RandomAttack(BALL, samples=n, checks=False)
        assert copies.of_attack(far, CASES[case], attack) == (1, 1 + n)


@pytest.mark.parametrize("radius, looks", [([1.0] * 4, 1), ([1.0, 1.0, 0.0, 0.0], 2)])
def test_the_converged_attack_looks_once_a_round(radius, looks, far):
    """Which samples go on; and once more if the others have left, whether the model lets them."""
    assert copies.of_round(far, CASE, radius) == (looks, 0)


#: Copies of a step, beside those of deepinv's own trainer.
MORE = {
    "deepinv.Trainer": (0, 0),
    "JitterTrainer": (1, 0),  # whether the gradient is finite
    "JitterTrainer, ema": (1, 0),
    "InputJitterTrainer": (1, 1),  # which entries are measured
    "AttackTrainer": (3, 1),  # whether x and y are finite, and the attack's own look
    "AttackTrainer, persistent": (5, 2),  # the perturbations, and a look at them
    "RobustTrainer": (2, 1),  # the mean of one attacked and one with noise
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("name", TRAINERS)
def test_a_step_of_a_trainer(name, case, far):
    host = copies.of_step(far, case, "deepinv.Trainer")
    own = copies.of_step(far, case, name)
    assert (own[0] - host[0], own[1] - host[1]) == MORE[name]


@pytest.mark.slow
def test_the_table_of_the_documentation(far):
    page = (FOLDER.parents[1] / "docs" / "performance.md").read_text()
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines()]
    told = {line[0]: line[1:3] for line in lines}
    for what, *counts in copies.rows(far, CASE):
        assert told[what] == [str(n) for n in counts]


# The same numbers on another device


SAME = {
    "all flags": dj.PGDAttack(BALL, steps=2, start="random"),
    "APGD": dj.APGDAttack(dj.LinfBall(0.1, relative_to="y"), steps=5, checks=False),
    "converged": dj.ConvergedAttack(dj.MomentumAttack(BALL, steps=2, checks=False), max_steps=20),
    "worst case": dj.WorstCase(
        [dj.FrankWolfeAttack(BALL, checks=False), dj.RandomAttack(BALL, samples=3, checks=False)]
    ),
}


@pytest.mark.parametrize("name, case", [*((name, "sections") for name in SAME), ("APGD", "MRI")])
def test_attacks_find_the_same(name, case):
    attack, case = SAME[name], CASES[case]
    x, physics, model = case.truth(), case.physics(), case.model(max_iter=2)
    # Some samples leave the converged attack at once
    eps = None if name == "APGD" else torch.tensor([1.0, 0.0, 0.5, 0.0])
    here = attack.run(model, x, physics.A(x), physics, eps=eps)
    with copies.pretended():
        model, physics, x = model.to("meta"), physics.to("meta"), x.to("meta")
        eps = None if eps is None else eps.to("meta")
        there = to_cpu(vars(attack.run(model, x, physics.A(x), physics, eps=eps)))
    for field, value in vars(here).items():
        torch.testing.assert_close(there[field], value, rtol=1e-4, atol=1e-5)


def test_diffusion_samples_the_same_and_learns_there():
    unet = dinv.models.NCSNpp(
        **{"img_resolution": 16, "in_channels": 2, "out_channels": 1, "model_channels": 32},
        **{"channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (), "pretrained": None},
    )
    model, physics = dj.ConditionalDDPM(unet, steps=2), dj.SeismicConvolution()
    x = torch.randn(2, 1, 16, 16)
    here = model(physics.A(x), physics)
    with copies.pretended() as far:
        model, physics, x = model.to("meta"), physics.to("meta"), x.to("meta")
        torch.testing.assert_close(model(physics.A(x), physics).cpu(), here, rtol=1e-3, atol=1e-4)
        for generator, copied in ((None, 0), (torch.Generator(), 2)):  # time and noise
            loss = dj.DenoisingLoss(generator)
            counts = far.count(lambda: loss(None, x, physics.A(x), physics, model).sum().backward())
            assert counts == (0, copied)
        learned = [p.grad.cpu() for p in model.parameters() if p.grad is not None]
        assert learned and all(g.isfinite().all() for g in learned)


class Doubled(torch.nn.Module):
    def forward(self, y, physics):
        return 2 * y


@pytest.mark.parametrize("ball", [BALL, dj.LinfBall(0.1, relative_to="y")], ids=repr)
def test_complex_measurements_need_no_complex_norms(ball, far):
    attack, physics = dj.PGDAttack(ball, steps=3, start="random"), dinv.physics.Denoising()
    x, y = torch.randn(2, 4, 1, 8, 8, dtype=torch.complex64)
    here = attack.run(Doubled(), x, y, physics)
    there = attack.run(Doubled(), x.to("meta"), y.to("meta"), physics.to("meta"))
    for field, value in vars(here).items():
        torch.testing.assert_close(to_cpu(vars(there))[field], value, rtol=1e-4, atol=1e-5)


def test_whole_numbers_are_drawn_as_large_as_a_device_can(monkeypatch):
    assert checks.widest_draw(torch.device("mps")) == 2**31 - 1
    monkeypatch.setattr(checks, "widest_draw", lambda device: 3)
    assert {rng.drawn(torch.Generator().manual_seed(n)) for n in range(20)} == {0, 1, 2}
    masks = dj.FastMRIMaskGenerator((8, 40), seed=0).step(20)["mask"]
    assert len(masks.unique(dim=0)) == 3


def test_what_a_model_carries_on_the_cpu_stays_there(far):
    here, carried = torch.zeros(2, dtype=torch.float64), Carried()
    carried._device, carried._holders = far.device, {"0 Loss": {"level": here}}
    carried.load_own({"carried": {"0 Loss.level": here + 1}})
    torch.testing.assert_close(carried._holders["0 Loss"]["level"], here + 1)


def test_an_operation_that_a_device_lacks_is_named(monkeypatch):
    def lacking(tensor):
        raise NotImplementedError("aten::isfinite is not implemented")

    monkeypatch.setattr(torch.Tensor, "isfinite", lacking)
    with pytest.raises(NotImplementedError, match="aten::isfinite"):
        checks.finite(x=torch.ones(2))


def evaluation(where, **options):
    """To be called."""
    data = [{"x": CASE.truth()}]
    physics = CASE.physics()
    physics.noise_model = dinv.physics.GaussianNoise(0.05)
    arguments = {
        "epsilons": [0.5],
        "attacks": dj.PGDAttack(dj.L2Ball(1.0, relative_to="noise"), steps=2),
        "draws": 2,
        "shifts": [dj.HorizontalLayer(0.1, length=4), dj.Lesion(2, 0.5)],
        "metrics": [dinv.metric.NMSE()],
        "verbose": False,
    }
    model = CASE.model(max_iter=2).to(where)
    return functools.partial(
        dj.evaluate_robustness, model, data, physics.to(where), **arguments | options
    )


def test_an_evaluation_runs_without_double_precision(far):
    """And its values come to the CPU; they differ, as noise is drawn on the device."""
    report = evaluation("meta")()
    columns = [column for columns in report.values.values() for column in columns.values()]
    assert columns and all(column.device.type == "cpu" for column in columns)
    assert {column.dtype for column in columns} <= {torch.float64, torch.bool}
    assert "worst case" in report.table()


def test_single_numbers_are_in_the_widest_precision_there_is(far):
    assert checks.widest(torch.device("cpu")) == torch.float64
    assert checks.widest(torch.device("meta")) == torch.float32
    x, y, physics = copies.problem(CASE)
    level = dj.input_jitter_sigma(0.1, y, physics)
    here = CASE.physics()
    here.noise_model = dinv.physics.GaussianNoise(0.05)
    assert level == pytest.approx(dj.input_jitter_sigma(0.1, y.cpu(), here), rel=1e-4)
    assert dj.Bias(torch.ones(2, device="meta")).value == [1, 1]
    risk = dj.average_case_risk(copies.model_of(CASE), x, y, physics, sigma_e=0.1, samples=2)
    assert risk.mean > 0


@pytest.mark.parametrize("name", TRAINERS)
def test_trainings_move_the_weights_without_double_precision(name, far):
    trainer = copies.trainer_of(name, CASE, 2)
    before = [p.detach().cpu() for p in trainer.model.parameters()]
    trainer.train()
    after = [p.detach().cpu() for p in trainer.model.parameters()]
    assert all(p.isfinite().all() for p in after)
    assert any(not torch.equal(p, q) for p, q in zip(before, after, strict=True))


# Where tensors are made, and generators


def everything():
    """What draws or makes tensors, on the CPU."""
    masks = dj.FastMRIMaskGenerator((16, 12), acceleration=2, center_fraction=0.1, seed=0)
    yield masks.step(4)["mask"]
    yield dj.SingleCoilMRI(img_size=(16, 12)).mask
    yield dj.SeismicConvolution().wavelet
    yield dj.ReflectivityDataset(2, img_size=(16, 12))[0]["x"]
    yield dj.PointDataset(2)[1]["x"]
    y, eps = torch.ones(4, 2, device="cpu"), torch.ones(4, device="cpu")
    for ball in (dj.L2Ball(1.0), dj.LinfBall(1.0)):
        yield ball.radii(y, None)
        for distribution in ("sphere", "ball", "gaussian"):
            yield ball.random(y, eps, torch.Generator().manual_seed(0), distribution)
    yield dj.GaussianJitter(0.1, generator=torch.Generator().manual_seed(0))(y)


def test_the_default_device_changes_nothing_on_the_cpu(far):
    with torch.device("meta"):
        elsewhere = [*everything()]
    for a, b in zip(elsewhere, everything(), strict=True):
        assert a.device.type == "cpu" and torch.equal(a, b)


def test_nor_in_an_evaluation():
    call = evaluation("cpu")
    here = call()
    with torch.device("meta"):
        elsewhere = call()
        table = elsewhere.table()
    assert table.splitlines()[0] == here.table().splitlines()[0]
    torch.testing.assert_close(elsewhere.values, here.values, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", TRAINERS)
def test_nor_in_a_training(name, far):
    """With a loader that does not shuffle: torch's own draws on its default device."""
    ended = []
    for where in ("cpu", "meta"):
        torch.manual_seed(0)
        trainer = copies.trainer_of(name, CASE, 2, device="cpu")
        with torch.device(where):
            ended.append([p.detach() for p in trainer.train().parameters()])
    assert all(map(torch.equal, *ended))


@pytest.mark.parametrize("attack", SAME.values(), ids=list(SAME))
def test_nor_in_an_attack(attack):
    x, physics, model = CASE.truth(), CASE.physics(), CASE.model(max_iter=2)
    here = attack(model, x, physics.A(x), physics)
    with torch.device("meta"):
        assert torch.equal(attack(model, x, physics.A(x), physics), here)


@pytest.mark.parametrize("scale", ["std", "relative"])
def test_a_generator_may_be_on_another_device_than_the_noise(scale, far):
    """The noise is the same; without double precision, too."""
    x = torch.randn(2, 3)
    noise = (
        dj.GaussianJitter(0.1, scale, torch.Generator().manual_seed(0))(x.to(device)).cpu()
        for device in ("cpu", "meta")
    )
    torch.testing.assert_close(*noise)


def test_so_may_that_of_input_jittering(far):
    trainer = functools.partial(
        dj.InputJitterTrainer, train_dataloader=DataLoader([0.0]), device="meta", verbose=False
    )
    x, y, physics = copies.problem(CASE)
    model = copies.model_of(CASE)
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    perturbed = [
        trainer(
            model, physics, torch.optim.Adam(model.parameters()), sigma=0.1, generator=g
        ).perturb(x, y, physics)
        for g in generators
    ]
    assert torch.equal(perturbed[0].cpu(), perturbed[1].cpu())
    assert not torch.equal(perturbed[0].cpu(), y.cpu())


# Global generators of devices


@pytest.fixture(params=memory.DEVICES)
def global_generator(request, monkeypatch):
    """That of a kind of device, which is pretended to be in use; reachable by no attribute."""
    generator, module = torch.Generator(), getattr(torch, request.param)
    monkeypatch.setattr(torch.mps, "pretended", generator, raising=False)
    if request.param == "mps":
        functions = {"get_rng_state": generator.get_state, "set_rng_state": generator.set_state}
        functions |= {"manual_seed": generator.manual_seed}
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    else:
        functions = {
            "is_initialized": lambda: True,
            "get_rng_state_all": lambda: [generator.get_state()],
            "set_rng_state_all": lambda states: generator.set_state(*states),
            "manual_seed_all": generator.manual_seed,
        }
    for name, function in functions.items():
        monkeypatch.setattr(module, name, function)
    return generator


class DrawsOnDevice(dj.GaussianJitter):
    """Noise from the global generator of the pretended device."""

    def standard_normal(self, x):
        return torch.randn(x.shape, generator=torch.mps.pretended)


class Stochastic(torch.nn.Module):
    """A network that draws in evaluation mode, too."""

    def forward(self, y, physics):
        return y + DrawsOnDevice(0.1)(y)


def test_they_are_seeded_and_brought_back(global_generator):
    def draw():
        return torch.rand(3, generator=global_generator)

    before, found = global_generator.get_state(), []
    for seed in (1, 1, 2):
        with rng.seeded(seed):
            found.append(draw())
    assert torch.equal(global_generator.get_state(), before)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    rng.diverge([], process=1)
    assert not torch.equal(global_generator.get_state(), before)


def test_attacks_and_evaluations_leave_them_as_they_were(global_generator):
    before = global_generator.get_state()
    x, physics = torch.randn(4, 1, 8, 8), dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    dj.PGDAttack(BALL, steps=2)(Stochastic(), x, x, physics)
    assert torch.equal(global_generator.get_state(), before)
    options = {"epsilons": [0.1], "attacks": "quick", "draws": 1, "verbose": False}
    first, second = (
        dj.evaluate_robustness(Stochastic(), [x], physics, **options) for _ in range(2)
    )
    assert torch.equal(global_generator.get_state(), before)
    torch.testing.assert_close(first.values, second.values, rtol=0, atol=0, equal_nan=True)


class Dropping(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return self.weight * x * torch.rand(x.shape, generator=torch.mps.pretended)


@pytest.mark.parametrize("global_generator", ["mps"], indirect=True)
def test_recomputed_iterations_find_them_where_they_were(global_generator):
    """Of GPUs of Apple, which torch's checkpoint leaves alone."""
    y, found = torch.randn(2, 3), []
    for checkpoint in (False, True):
        global_generator.manual_seed(0)
        model = dj.UnfoldedGD(Dropping(), stepsize=0.5, max_iter=3, checkpoint=checkpoint)
        model(y, dinv.physics.Denoising()).square().sum().backward()
        found.append([p.grad for p in model.parameters()] + [global_generator.get_state()])
    assert all(map(torch.equal, *found))


def test_noise_that_cannot_be_repeated_is_refused(monkeypatch):
    monkeypatch.setattr(noise, "UNRESTORED", ("cpu",))
    x = torch.ones(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match="Jitter on cpu cannot be repeated in the backward"):
        torch.utils.checkpoint.checkpoint(
            lambda x: dj.Jitter(0.1)(x).square(), x, use_reentrant=False
        ).sum().backward()


def test_calls_are_told_apart_by_them(global_generator, request):
    kind = request.node.callspec.params["global_generator"]
    state = hooks._random_state(torch.device(kind))
    assert state == global_generator.get_state().numpy().tobytes()


def test_resumed_trainings_draw_from_where_they_were(tmp_path, global_generator):
    def trained(folder, epochs, **options):
        torch.manual_seed(0)
        return training(tmp_path / folder, epochs=epochs, jitter=DrawsOnDevice(0.1), **options)

    whole = trained("whole", 2).train()
    trained("first", 1).train()
    path = dj.latest_checkpoint(tmp_path / "first")
    resumed = trained("second", 2, ckpt_pretrained=path).train()
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


# Files


@pytest.fixture
def of_a_gpu(monkeypatch):
    """Files that are written say that their tensors come from a GPU, which is not here."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")


def test_what_processes_tell_each_other_arrives_on_the_cpu(monkeypatch, of_a_gpu):
    """torch's own collective would bring it to the GPU it comes from, which is not here."""

    def all_gather_object(things, thing):
        things[:] = [pickle.loads(pickle.dumps(thing)) for _ in things]

    monkeypatch.setattr(distributed, "count", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather_object)
    said = {"point": [torch.arange(3.0)], "seconds": 1.5}
    with pytest.raises(RuntimeError, match="on a CUDA device"):
        all_gather_object([None], said)
    torch.testing.assert_close(distributed.gathered(said), [said, said])


def training(folder, device="cpu", jitter=None, **options):
    model = CASE.model(max_iter=2).to(device)
    if jitter is not None:
        dj.jitter(model, jitter)
    data = dinv.datasets.TensorDataset(x=CASE.truth(), use_dict_output=True)
    return dj.JitterTrainer(
        model,
        CASE.physics().to(device),
        torch.optim.Adam(model.parameters()),
        DataLoader(data, batch_size=2),
        online_measurements=True,
        device=device,
        save_path=folder and str(folder),
        verbose=False,
        ema=0.9,
        **options,
    )


def test_checkpoints_of_a_gpu_go_on_on_the_cpu(tmp_path, of_a_gpu):
    torch.manual_seed(0)
    whole = training(tmp_path / "whole", epochs=2).train()
    torch.manual_seed(0)
    training(tmp_path / "first", epochs=1).train()
    path = dj.latest_checkpoint(tmp_path / "first")
    with pytest.raises(RuntimeError, match="on a CUDA device"):
        torch.load(path)
    resumed = training(tmp_path / "second", epochs=2, ckpt_pretrained=path).train()
    for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta", "ignore:No training")
def test_those_of_the_cpu_go_on_on_a_gpu_which_waits_no_more_often(tmp_path, far):
    """Counts of steps that an optimizer had on a GPU would be asked for, one by one."""
    torch.manual_seed(0)
    before = training(tmp_path, epochs=1).train()
    path = dj.latest_checkpoint(tmp_path)

    def copies_of(epochs, **options):
        trainer = training(None, epochs=epochs, device="meta", **options)
        return [*far.count(trainer.train)], trainer

    (first, _), (second, _) = (copies_of(epochs) for epochs in (1, 2))
    (none, loaded), (resumed, trainer) = (copies_of(n, ckpt_pretrained=path) for n in (1, 2))
    for p, q in zip(before.parameters(), loaded.model.parameters(), strict=True):
        assert torch.equal(p, q.cpu())
    state = trainer.optimizer.state[next(trainer.model.parameters())]
    assert state["step"].device.type == "cpu" and state["exp_avg"].is_meta
    assert resumed[0] - none[0] == second[0] - first[0]


def test_so_do_states_of_evaluations(tmp_path, of_a_gpu):
    state = tmp_path / "state.pt"
    first = evaluation("cpu", state=state)()
    again = evaluation("cpu", state=state)()
    assert again.seconds == first.seconds  # nothing was done again
    torch.testing.assert_close(first.values, again.values, equal_nan=True)
