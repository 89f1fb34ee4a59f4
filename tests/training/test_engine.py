"""Steps that are not finite, and checkpoints that do not do."""

import math
import pickle
import warnings

import deepinv as dinv
import numpy as np
import pytest
import torch
from properties import assert_same, assert_same_parameters
from test_trainers import build, last_checkpoint
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

import deepinv_jitter as dj


class Points(torch.utils.data.Dataset):
    """Truths and measurements, of which one may be spoilt."""

    def __init__(self, spoilt=None, value=math.nan, where="x"):
        draw = torch.Generator().manual_seed(0)
        self.data = {
            "x": torch.randn(12, 2, generator=draw),
            "y": torch.randn(12, 2, generator=draw),
        }
        if spoilt is not None:
            self.data[where][spoilt, 0] = value

    def __len__(self):
        return 12

    def __getitem__(self, i):
        return {name: values[i] for name, values in self.data.items()}


class RootLoss(dinv.loss.Loss):
    """Finite at 0, where its gradient is not."""

    def forward(self, x_net, x, **kwargs):
        return (x_net - x_net.detach()).square().sum(1).sqrt()


def trainer_of(folder, data, epochs=2, **kwargs):
    options = {"online_measurements": False, "eval_dataloader": None, "scheduler": None}
    options |= {"compute_eval_losses": False} | kwargs
    return build(folder, epochs, train_dataloader=DataLoader(data, 4), **options)


def quietly(trainer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trainer.train()


SPOILT = {
    "x": {"where": "x"},
    "y": {"where": "y"},
    "infinite": {"where": "y", "value": math.inf},
    "too large": {"where": "x", "value": 1e30},  # its square is not finite
}


@pytest.mark.parametrize("scheme", [dj.JitterTrainer, dj.AttackTrainer, dj.RobustTrainer])
@pytest.mark.parametrize("case", SPOILT)
def test_the_run_stops_and_names_the_batch(tmp_path, scheme, case):
    options = {}
    if scheme is not dj.JitterTrainer:
        options["attack"] = dj.FrankWolfeAttack(dj.L2Ball(0.1), steps=1)
    if scheme is dj.RobustTrainer:
        options["sigma"] = 0.1
    data = Points(6, **SPOILT[case])
    trainer = trainer_of(tmp_path, data, trainer=scheme, **options)
    found = "x and y are finite"
    if case != "too large":
        found = f"{SPOILT[case]['where']} not finite"
    message = f"got loss .* in epoch 0, batch 1 .{found}.: the weights are those of before"
    with pytest.raises(FloatingPointError, match=message):
        quietly(trainer)
    # the weights after the one good batch, in memory and in a file
    before = trainer_of(tmp_path / "b", Points(), trainer=scheme, **options)
    before.max_batch_steps = 0
    before.train()
    assert_same_parameters(trainer.model, before.model)
    kept = dj.latest_checkpoint(tmp_path)
    assert kept.name == "ckp_interrupted.pth.tar"
    after = trainer_of(
        tmp_path / "c", data, trainer=scheme, ckpt_pretrained=kept, on_non_finite="skip", **options
    )
    quietly(after)
    assert after.skipped == [(0, 1), (1, 1)]


@pytest.mark.parametrize("case", SPOILT)
def test_the_batch_is_left_out(tmp_path, case):
    options = {"on_non_finite": "skip", "check_grad": True}
    trainer = trainer_of(tmp_path, Points(6, **SPOILT[case]), **options)
    with pytest.warns(UserWarning, match="in epoch 0, batch 1 .*: the batch is left out"):
        trainer.train()
    assert trainer.skipped == [(0, 1), (1, 1)]
    assert all(map(math.isfinite, trainer.loss_history["SupLoss"]))
    assert math.isfinite(trainer.check_grad_val.avg)
    # the noise of the batch was drawn, all else is as without it
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_without_noise_it_is_as_if_the_batch_had_not_been(tmp_path):
    data = Points(6)
    models = []
    for subset in (data, torch.utils.data.Subset(data, [0, 1, 2, 3, 8, 9, 10, 11])):
        trainer = trainer_of(tmp_path / str(len(models)), subset, on_non_finite="skip")
        dj.unjitter(trainer.model)
        quietly(trainer)
        models.append(trainer)
    assert_same_parameters(*(trainer.model for trainer in models))
    losses = [trainer.loss_history["SupLoss"] for trainer in models]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_a_gradient_that_is_not_finite(tmp_path):
    trainer = trainer_of(tmp_path, Points(), losses=RootLoss())
    with pytest.raises(FloatingPointError, match="got loss 0, largest entry of its gradient nan"):
        trainer.train()


def test_an_error_of_a_loss_is_no_batch_to_leave_out(tmp_path):
    class Failing(dinv.loss.SupLoss):
        def forward(self, **kwargs):
            raise FloatingPointError("of the loss itself")

    trainer = trainer_of(tmp_path, Points(), losses=Failing(), on_non_finite="skip")
    with pytest.raises(FloatingPointError, match="^of the loss itself$"):
        trainer.train()


def test_float16_overflows_are_left_to_the_scaler(tmp_path):
    """Its gradients may be infinite; a loss that is not finite is told."""
    options = {"mixed_precision": "float16", "on_non_finite": "skip"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_of(tmp_path, Points(6), **options)
        trainer.train()
    assert trainer.skipped == [(0, 1), (1, 1)]
    assert all(p.isfinite().all() for p in trainer.model.parameters())


def test_if_no_batch_is_left_the_run_ends(tmp_path):
    data = Points()
    data.data["x"][:] = math.nan
    trainer = trainer_of(tmp_path, data, on_non_finite="skip")
    with pytest.raises(FloatingPointError, match="Every batch of epoch 0 was left out"):
        quietly(trainer)


PLATEAU = ReduceLROnPlateau(torch.optim.SGD(dj.PointMLP().parameters()))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"on_non_finite": "ignore"}, "must be one of .'raise', 'skip'., got 'ignore'"),
        (
            {"on_non_finite": "skip", "log_train_batch": True},
            "skip' leaves batches without a loss, but log_train_batch=True asks",
        ),
        ({"scheduler": PLATEAU}, "step without a metric, .* got ReduceLROnPlateau: take one"),
    ],
)
def test_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, 1, **options)


@pytest.fixture
def checkpoint(tmp_path):
    trainer = build(tmp_path / "run", 2)
    trainer.train()
    return last_checkpoint(trainer, 1)


def resumed(tmp_path, path, **kwargs):
    return build(tmp_path / "again", 3, ckpt_pretrained=path, **kwargs)


@pytest.mark.parametrize(
    "spoil, error, message",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-500]), ValueError, "is damaged or"),
        (lambda path: path.write_bytes(b""), ValueError, "is damaged or something else"),
        (lambda path: path.write_text("no"), pickle.UnpicklingError, "Weights only load"),
        (lambda path: torch.save([1, 2], path), ValueError, "with a state_dict, got"),
        (lambda path: path.unlink(), FileNotFoundError, "No such file"),
    ],
)
def test_files_that_are_no_checkpoints(tmp_path, checkpoint, spoil, error, message):
    spoil(checkpoint)
    with pytest.raises(error, match=message):
        resumed(tmp_path, checkpoint).train()


@pytest.mark.parametrize(
    "network, differs",
    [
        (dj.PointMLP(hidden=16), r"network.0.bias, .*network.0.weight, .* and others: build"),
        (torch.nn.Linear(2, 2), r"prior.0.network.0.bias, .* and others: build the model as"),
    ],
)
def test_a_checkpoint_of_another_model(tmp_path, checkpoint, network, differs):
    trainer = resumed(tmp_path, checkpoint)
    trainer.model = dj.UnfoldedGD(network, stepsize=0.5, max_iter=3)
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    with pytest.raises(ValueError, match=f"must be of this model, but .* in .*{differs}"):
        trainer.train()
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


class Counting(torch.nn.Linear):
    """Saves a number, which is no tensor."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


def test_extra_state_is_loaded(tmp_path):
    found = []
    for epochs in (1, 2):
        path = dj.latest_checkpoint(tmp_path)
        trainer = trainer_of(tmp_path, Points(), epochs, ckpt_pretrained=path)
        network = trainer.model.prior[0].network = Counting(2, 2)
        trainer.optimizer = torch.optim.Adam(trainer.model.parameters())
        trainer.train()
        found.append(network.calls)
    assert found[1] == 2 * found[0] > 0


class Remembering(torch.nn.Module):
    """Holds what networks may hold: running means, a warm start, a count of its calls."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)
        self.norm = torch.nn.BatchNorm1d(2)
        self.register_buffer("last", torch.zeros(2))
        self.warm = None

    def forward(self, x):
        self.last = x.detach().mean(0)  # replaced, not written into
        self.warm = x.detach() if self.warm is None else self.warm + x.detach().mean()
        return self.norm(self.linear(x))


class Learning(dinv.loss.SupLoss):
    """Learns a level of its own, as deepinv's UNSURE does."""

    level = 0.0

    def __init__(self):
        super().__init__(metric=dinv.metric.MSE())
        self.level = torch.tensor(1.0)

    def forward(self, x_net, x, **kwargs):
        loss = super().forward(x_net, x)
        self.level = self.level + loss.detach().mean()
        return loss


def remembering(folder, data, losses=None, **kwargs):
    torch.manual_seed(3)
    model = dj.UnfoldedGD(Remembering(), stepsize=0.5, max_iter=2)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    options = {"epochs": 1, "device": "cpu", "save_path": folder, "verbose": False}
    options |= {"metrics": None, "losses": losses or Learning()} | kwargs
    loaders = data if isinstance(data, list) else DataLoader(data, 4)
    physics = [dinv.physics.Denoising()] * (len(data) if isinstance(data, list) else 1)
    return dj.JitterTrainer(model, physics, optimizer, loaders, **options)


def held(trainer):
    """Everything that a step may change."""
    network = trainer.model.prior[0].network
    state = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    state |= {"warm": network.warm, "level": trainer.losses[0].level}
    for i, moments in trainer.optimizer.state_dict()["state"].items():
        state |= {f"{i} {name}": value.clone() for name, value in moments.items()}
    scale = trainer.scaler.state_dict()
    return state | {k: torch.tensor(v) for k, v in scale.items()}


@pytest.mark.parametrize("precision", [False, "float16", "bfloat16"])
@pytest.mark.parametrize("case", SPOILT)
def test_nothing_of_a_batch_left_out_stays(tmp_path, case, precision):
    """Weights, moments, the scale of float16, buffers, warm starts, what a loss has learned."""
    without = torch.utils.data.Subset(Points(), [0, 1, 2, 3, 8, 9, 10, 11])
    found = []
    for data in (Points(6, **SPOILT[case]), without):
        options = {"mixed_precision": precision, "on_non_finite": "skip"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = remembering(tmp_path / str(len(found)), data, **options)
            trainer.train()
        found.append(held(trainer))
    assert trainer.skipped == []
    assert_same(*found)


def test_the_checkpoint_of_before_a_bad_batch_is_clean(tmp_path):
    trainer = remembering(tmp_path / "run", Points(6))
    with pytest.raises(FloatingPointError, match="batch 1 .x not finite."):
        quietly(trainer)
    before = remembering(tmp_path / "before", torch.utils.data.Subset(Points(), range(4)))
    before.train()
    assert_same(held(trainer), held(before))
    kept = torch.load(dj.latest_checkpoint(tmp_path / "run"), weights_only=True)
    assert_same(kept["state_dict"], before.model.state_dict())


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("precision", [False, "float16"])
@pytest.mark.parametrize("together", [True, False])
def test_of_several_data_sets_the_bad_part_alone_is_left_out(
    tmp_path, bad, seed, precision, together
):
    """Whatever their order, which the host draws: as without that data set."""
    spoilt = Points()
    spoilt.data["x"][:] = math.nan
    pair = [Points(), Points()]
    pair[bad] = spoilt
    options = {"mixed_precision": precision, "on_non_finite": "skip", "grad_clip": 0.1}
    options |= {"optimizer_step_multi_dataset": together, "compute_train_metrics": True}
    options |= {"metrics": dinv.metric.MSE(), "eval_dataloader": DataLoader(Points(), 4)}
    found = []
    for data in (pair, [Points()]):
        np.random.seed(seed)
        loaders = [DataLoader(part, 12) for part in data]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = remembering(tmp_path / str(len(found)), loaders, **options)
            trainer.eval_dataloader = [trainer.eval_dataloader] * len(data)
            logs, trainer.log_metrics_mlops = [], lambda logs, **_: logged.append(logs)
            logged = logs
            trainer.train()
        found.append((held(trainer), trainer.loss_history, trainer.train_metrics_history))
        assert math.isfinite(trainer.check_grad_val.avg)
        assert math.isfinite(logs[0]["TotalLoss"])
    assert_same(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]


ADDED = {
    "JitterTrainer": (dj.JitterTrainer, {}),
    "AttackTrainer": (dj.AttackTrainer, {"attack": dj.FrankWolfeAttack(dj.L2Ball(0.1), steps=2)}),
}


@pytest.mark.parametrize("scheme", ADDED)
def test_gradients_of_the_parts_of_a_batch_add_up_to_those_of_the_batch(tmp_path, scheme):
    """Their mean, times the number of parts."""
    trainer_class, options = ADDED[scheme]
    parts = [torch.utils.data.Subset(Points(), range(i, 12, 3)) for i in range(3)]
    ended = []
    for loaders in ([DataLoader(part, 4) for part in parts], [DataLoader(Points(), 12)]):
        trainer = trainer_of(
            tmp_path / str(len(ended)), Points(), 4, trainer=trainer_class, **options
        )
        dj.unjitter(trainer.model)
        trainer.train_dataloader, trainer.physics = loaders, [trainer.physics] * len(loaders)
        rate = 0.3 / len(loaders)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=rate)
        steps = []
        trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
        ended.append([p.detach() for p in trainer.train().parameters()])
        assert len(steps) == 4
    start = trainer_of(tmp_path / "start", Points(), trainer=trainer_class, **options).model
    for p, q, before in zip(*ended, start.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)
        assert not torch.allclose(q, before, atol=1e-4)


def test_where_all_parts_are_bad_no_step_is_made(tmp_path):
    """Not even an empty one, which would count as a step of the optimizer."""
    steps = []
    trainer = remembering(tmp_path, [DataLoader(Points(6), 4)] * 2, on_non_finite="skip")
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    quietly(trainer)
    assert len(steps) == 2 and trainer.skipped == [(0, 1), (0, 1)]


def test_parameters_of_another_optimizer_are_cleaned_too(tmp_path):
    """Of which the host keeps adding up gradients: one NaN would spoil every later batch."""
    trainer = remembering(tmp_path, Points(2), on_non_finite="skip")
    linear = trainer.model.prior[0].network.linear
    trainer.optimizer = torch.optim.SGD(linear.parameters(), 0.01)
    quietly(trainer)
    assert trainer.skipped == [(0, 0)]


@pytest.mark.parametrize("bad", [0, 1])
def test_what_perturbing_a_bad_batch_taught_is_forgotten(tmp_path, bad):
    """The level of input jittering, the monitor's batch and the perturbations of its samples."""
    data = dj.IndexedDataset(Points(6 if bad else 2, value=1e30, where="x"))
    ball = dj.L2Ball(0.1)
    options = {"attack": dj.FrankWolfeAttack(ball, steps=1), "persistent": True}
    options |= {"monitor": dj.FrankWolfeAttack(ball, steps=2), "eps": 0.1}
    options |= {"share": lambda epoch: min(epoch, 1), "on_non_finite": "skip"}
    trainer = trainer_of(tmp_path, data, trainer=dj.RobustTrainer, **options)
    quietly(trainer)
    assert trainer.skipped == [(0, bad), (1, bad)]
    first = Points().data["y"][4:8] if bad == 0 else Points().data["y"][:4]
    physics = trainer.physics[0]
    assert trainer.sigma == dj.input_jitter_sigma(0.1, first, physics)
    assert torch.equal(trainer._monitor.own_state()["monitored"]["y"], first)
    left_out = range(4 * bad, 4 * bad + 4)
    assert sorted(trainer._deltas.known) == [(0, i) for i in range(12) if i not in left_out]


def test_a_level_is_not_taken_from_measurements_that_are_not_finite(tmp_path):
    data, options = Points(2, where="y"), {"eps": 0.1, "on_non_finite": "skip"}
    trainer = trainer_of(tmp_path, data, trainer=dj.InputJitterTrainer, **options)
    quietly(trainer)
    expected = dj.input_jitter_sigma(0.1, data.data["y"][4:8], trainer.physics[0])
    assert trainer.sigma == expected


def sgd(trainer):
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 2, 0.5)


def two_groups(trainer):
    first, *others = trainer.model.parameters()
    trainer.optimizer = torch.optim.Adam([{"params": [first]}, {"params": others}])


def another_order(trainer):
    trainer.optimizer = torch.optim.Adam(list(trainer.model.parameters())[::-1])


def fewer_parameters(trainer):
    trainer.optimizer = torch.optim.Adam(list(trainer.model.parameters())[1:])


def no_scheduler(trainer):
    trainer.scheduler = None


def cosine(trainer):
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR
    trainer.scheduler = schedule(trainer.optimizer, 3)


def exponential(trainer):
    schedule = torch.optim.lr_scheduler.ExponentialLR
    trainer.scheduler = schedule(trainer.optimizer, 0.9)


def no_generator(trainer):
    trainer.physics.noise_model.rng = None


def another_generator(trainer):
    trainer.physics.noise_model.rng = None
    trainer.train_dataloader.dataset.dataset.other = torch.Generator()


def on_a_gpu(path):
    """As a generator on a GPU is saved, whose state is much smaller."""
    name = "train_dataloader[0].dataset.dataset.rng"
    content = torch.load(path, weights_only=True)
    content["generators"][name] = "torch.Generator on cuda"
    content["ranks"][0]["rng"]["generators"][name] = torch.zeros(16, dtype=torch.uint8)
    torch.save(content, path)


OTHER = {
    "optimizer": (sgd, "its optimizer is Adam, here is SGD"),
    "groups": (two_groups, r"has groups of \[7\] parameters, here are \[1, 6\]"),
    "order": (another_order, "its optimizer has the parameters in another order"),
    "parameters": (fewer_parameters, r"groups of \[7\] parameters, here are \[6\]"),
    "scheduler removed": (no_scheduler, "it has StepLR, here is none"),
    "scheduler": (cosine, "its scheduler is StepLR, here is CosineAnnealingLR"),
    "fewer generators": (
        no_generator,
        r"it alone has the random generators physics\[0\].noise_model.rng. Build",
    ),
    "other generators": (
        another_generator,
        "it alone has .*noise_model.rng; this one alone has .*dataset.dataset.other. B",
    ),
}
#: Of deepinv's own trainer, which says less.
OTHER_OF_HOST = {
    "optimizer": (sgd, "its optimizer has amsgrad, betas, .* and others, and not damp"),
    "groups": OTHER["groups"],
    "parameters": OTHER["parameters"],
    "scheduler removed": (no_scheduler, "it has a scheduler, here is none"),
    "scheduler": (cosine, "scheduler has base_lrs, gamma, last_epoch and others, here"),
    "a scheduler like it": (exponential, "here is ExponentialLR with base_lrs, gamma, l"),
}
CASES = [
    *((dj.JitterTrainer, *case) for case in OTHER.values()),
    *((dinv.Trainer, *case) for case in OTHER_OF_HOST.values()),
]


def everything(trainer, physics):
    """What a resume would change."""
    weights = {name: w.tolist() for name, w in trainer.model.state_dict().items()}
    parts = trainer.optimizer, trainer.scheduler
    rng = physics.noise_model.rng
    return [
        weights,
        *(part and str(part.state_dict()) for part in parts),
        rng and rng.get_state().tolist(),
    ]


@pytest.mark.parametrize("saved_by, change, message", CASES)
def test_what_was_built_otherwise_is_refused(tmp_path, saved_by, change, message):
    """Before anything of it is taken over, and with what to do."""
    first = build(tmp_path / "a", 2, trainer=saved_by, non_blocking_transfers=False)
    first.train()
    path = dj.latest_checkpoint(tmp_path / "a")
    trainer = build(tmp_path / "b", 3, seed=9, ckpt_pretrained=path)
    change(trainer)
    physics = trainer.physics
    before = everything(trainer, physics)
    with pytest.raises(
        ValueError, match=f"built like this one, but .* differs: .*{message}"
    ) as error:
        trainer.train()
    assert str(error.value).endswith(
        "Build this one alike, or begin another with the weights alone: "
        'model.load_state_dict(torch.load(path)["state_dict"]).'
    )
    assert everything(trainer, physics) == before
    assert trainer.ckpt_pretrained == path and [*(tmp_path / "b").iterdir()] == []


def test_a_scheduler_or_an_optimizer_that_was_not_there(tmp_path, checkpoint):
    first = build(tmp_path / "a", 2, scheduler=None)
    first.train()
    path = dj.latest_checkpoint(tmp_path / "a")
    with pytest.raises(ValueError, match="it has no scheduler, here is StepLR"):
        build(tmp_path / "b", 3, ckpt_pretrained=path).train()
    content = torch.load(path, weights_only=True) | {"optimizer": None}
    torch.save(content, path)
    with pytest.raises(ValueError, match="it has no optimizer, here is Adam"):
        build(tmp_path / "b", 3, ckpt_pretrained=path).train()


def test_states_of_another_device_are_refused(tmp_path, checkpoint):
    on_a_gpu(checkpoint)
    with pytest.raises(ValueError, match="Generator on cuda, here is a .* on cpu"):
        resumed(tmp_path, checkpoint).train()


@pytest.mark.parametrize(
    "options, here",
    [({"batch_size": 5}, "4 batches without"), ({"num_workers": 1}, "4 batches with")],
)
def test_an_epoch_that_was_cut_off_goes_on_as_it_began(tmp_path, options, here):
    """With other batches, or an order that is drawn earlier, samples would be left out."""
    data = Points()
    first = trainer_of(tmp_path / "a", data, ckp_minutes=0)
    first.train_dataloader = DataLoader(data, 3)
    first.train()
    path = next((tmp_path / "a").rglob("ckp_interrupted.pth.tar"))
    again = trainer_of(tmp_path / "b", data, ckpt_pretrained=path)
    again.train_dataloader = DataLoader(data, **{"batch_size": 3} | options)
    here = here.replace("4", str(len(again.train_dataloader)))
    with pytest.raises(ValueError, match=f"has 4 batches without workers, here are {here} workers"):
        again.train()


def test_a_whole_epoch_may_be_followed_by_other_batches(tmp_path):
    trainer_of(tmp_path / "a", Points()).train()
    path = dj.latest_checkpoint(tmp_path / "a")
    again = trainer_of(tmp_path / "b", Points(), epochs=3, ckpt_pretrained=path)
    again.train_dataloader = DataLoader(Points(), 6)
    again.train()
    assert len(again.loss_history["SupLoss"]) == 3


def test_early_stopping_needs_its_history(tmp_path, checkpoint):
    options = {"metrics": dinv.metric.PSNR(), "early_stop": 2}
    with pytest.raises(ValueError, match="it knows no PSNR, after which this one stops"):
        resumed(tmp_path, checkpoint, **options).train()
    with pytest.warns(UserWarning, match="eval_metrics_history of PSNR begins here"):
        resumed(tmp_path, checkpoint, metrics=dinv.metric.PSNR()).train()


@pytest.mark.parametrize("patience, goes_on", [(1, False), (3, True), (None, True)])
def test_a_run_that_stopped_early_has_ended(tmp_path, patience, goes_on):
    """Started again it returns the same network, unless it is to be more patient."""

    def run(folder, early_stop):
        loader = DataLoader(Points(), 4)
        path = dj.latest_checkpoint(tmp_path)
        options = {"eval_dataloader": loader, "early_stop": early_stop, "ckpt_pretrained": path}
        trainer = trainer_of(folder, Points(), 5, **options)
        trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), 0.01, maximize=True)
        quietly(trainer)
        return trainer

    first, again = run(tmp_path, 1), run(tmp_path, patience)
    stopped = len(first.loss_history["SupLoss"])
    assert 1 < stopped < 5
    assert (len(again.loss_history["SupLoss"]) > stopped) == goes_on
    if not goes_on:
        assert_same_parameters(first.model, again.model)


@pytest.mark.parametrize("most, epochs", [(4, 2), (9, 4)])
def test_a_run_that_has_made_its_steps_has_ended(tmp_path, most, epochs):
    """Of 3 batches an epoch; it goes on if it is to make more."""

    def run(most):
        path = dj.latest_checkpoint(tmp_path)
        options = {"max_batch_steps": most, "ckpt_pretrained": path, "ckp_interval": 1}
        trainer = trainer_of(tmp_path, Points(), 8, **options)
        quietly(trainer)
        return trainer

    first, again = run(most), run(most)
    assert_same_parameters(first.model, again.model)
    assert len({p.name for p in tmp_path.rglob("ckp_*")}) == epochs - 1
    with pytest.raises(AssertionError):
        assert_same_parameters(first.model, run(most + 3 * epochs).model)


def test_a_jitter_training_goes_on_as_an_adversarial_one(tmp_path, checkpoint):
    attack = dj.FrankWolfeAttack(dj.L2Ball(0.1), steps=1)
    resumed(tmp_path, checkpoint, trainer=dj.AttackTrainer, attack=attack).train()


@pytest.mark.parametrize("shares", [2, 4])
def test_gradients_add_up_over_the_shares_of_a_data_set(shares):
    """The documented way to batches that do not fit into memory."""

    def weights(loaders, lr):
        torch.manual_seed(0)
        model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=2)
        dj.JitterTrainer(
            model,
            [dinv.physics.Denoising()] * len(loaders),
            torch.optim.SGD(model.parameters(), lr=lr),
            loaders,
            epochs=2,
            device="cpu",
            save_path=None,
            verbose=False,
        ).train()
        return list(model.parameters())

    data = Points()
    parts = [torch.utils.data.Subset(data, range(i, 12, shares)) for i in range(shares)]
    together = weights([DataLoader(data, 12)], 0.1)
    added = weights([DataLoader(part, 12) for part in parts], 0.1 / shares)
    for p, q in zip(together, added, strict=True):
        assert torch.allclose(p, q, atol=1e-6)
