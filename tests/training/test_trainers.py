import math
import pickle
import random
from pathlib import Path

import deepinv as dinv
import numpy as np
import pytest
import torch
from deepinv.loss.metric import MSE, PSNR
from deepinv.utils.tensorlist import TensorList
from properties import assert_same_parameters
from torch.utils.data import DataLoader, Dataset

import deepinv_jitter as dj


class NoisyPoints(Dataset):
    """Ground truths that consume all of the global generators, as augmentation does."""

    def __init__(self, rng):
        self.rng = rng

    def __len__(self):
        return 20

    def __getitem__(self, i):
        draws = [torch.rand(1), torch.rand(1, generator=self.rng)]
        draws += [torch.tensor([np.random.rand() + random.random()]).float()]
        return {"x": torch.cat(draws)[:2] + draws[2]}


def build(tmp_path, epochs, seed=0, trainer=dj.JitterTrainer, **kwargs):
    """A run in which everything that can be random is."""

    def generator(offset):
        return torch.Generator().manual_seed(seed + offset)

    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1, rng=generator(1)))
    law = dj.GaussianJitter(0.3, generator=generator(2))
    model = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=3, jitter=law)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    data = dj.IndexedDataset(NoisyPoints(generator(3)))
    arguments = {
        "train_dataloader": DataLoader(data, 6, shuffle=True, generator=generator(4)),
        "eval_dataloader": DataLoader(NoisyPoints(generator(5)), 6),
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        "metrics": MSE(),
        "online_measurements": True,
        "compute_eval_losses": True,
        "device": "cpu",
        "save_path": tmp_path,
        "verbose": False,
    } | kwargs
    return trainer(model, physics, optimizer, epochs=epochs, **arguments)


def last_checkpoint(trainer, epoch):
    return Path(trainer.save_path) / f"ckp_{epoch}.pth.tar"


def histories(trainer):
    return [
        trainer.loss_history,
        trainer.eval_loss_history,
        trainer.eval_metrics_history,
        trainer.train_metrics_history,
    ]


def attack(eps=0.1, **kwargs):
    return dj.FrankWolfeAttack(dj.L2Ball(eps), steps=2, **kwargs)


SCHEMES = {
    "jitter": {},
    "metrics on training batches": {"compute_train_metrics": True},
    "input jitter": {"trainer": dj.InputJitterTrainer, "sigma": 0.1},
    "attack": {"trainer": dj.AttackTrainer, "attack": attack()},
    "persistent attack": {
        "trainer": dj.AttackTrainer,
        "attack": attack(),
        "persistent": True,
        "monitor": attack(0.2),
    },
    "averaged": {"trainer": dj.AttackTrainer, "attack": attack(), "ema": 0.9},
    "robust": {
        "trainer": dj.RobustTrainer,
        "attack": attack(),
        "sigma": 0.1,
        "persistent": True,
        "share": lambda epoch: 0.5 if epoch < 4 else 1.0,
    },
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_resume_is_exact(tmp_path, scheme):
    """Stopped, and resumed in a trainer built with other seeds: bit for bit the same."""
    options = SCHEMES[scheme]
    whole = build(tmp_path / "whole", 6, **options)
    whole.train()
    part = build(tmp_path / "part", 3, **options)
    part.train()
    resumed = build(
        tmp_path / "resumed", 6, seed=99, ckpt_pretrained=last_checkpoint(part, 2), **options
    )
    resumed.train()
    assert_same_parameters(resumed.model, whole.model)
    assert histories(resumed) == histories(whole)
    assert len(whole.eval_metrics_history["MSE"]) == 6
    if scheme == "persistent attack":
        assert len(whole.monitor_history) == 6
        assert resumed.monitor_history == whole.monitor_history
    # and the states from which both would go on
    assert torch.equal(
        torch.get_rng_state(), torch.load(last_checkpoint(whole, 5))["ranks"][0]["rng"]["torch"]
    )


def test_checkpoints_are_plain_data(tmp_path):
    trainer = build(tmp_path, 2)
    trainer.train()
    checkpoint = torch.load(last_checkpoint(trainer, 1), weights_only=True)
    # noise model, jitter, data set and loader of training, data set of evaluation
    assert len(checkpoint["ranks"][0]["rng"]["generators"]) == 5
    plain = dj.UnfoldedGD(dj.PointMLP(), stepsize=0.5, max_iter=3)
    plain.load_state_dict(checkpoint["state_dict"])


#: What earlier versions wrote, and later ones read, beside what the host does.
KEYS = {"ranks", "time", "parts", "groups", "generators", "scaler", "skipped", "seconds"}
KEYS |= {"ema", "history_steps", "sigma", "deltas", "monitor_history"}
LATER_KEYS = {"mask_sizes", "stopped"}
OWN_KEYS = {"rng", "batch", "batches", "begins", "trained", "meters"}
OWN_KEYS |= {"looked_at", "monitored", "carried"}


def test_the_keys_of_checkpoints_stay(tmp_path):
    """Or trainings that began with an earlier version could not go on."""
    options = {"ckp_minutes": 0, "persistent": True, "monitor": attack(0.2)}
    trainer = build(tmp_path, 1, trainer=dj.RobustTrainer, attack=attack(), sigma=0.1, **options)
    trainer.train()
    folder = Path(trainer.save_path)
    names = "ckp_0.pth.tar", "ckp_interrupted.pth.tar"
    whole, amid = (torch.load(folder / name, weights_only=True) for name in names)
    assert whole.keys() > KEYS | LATER_KEYS and whole.keys() == amid.keys()
    assert amid["ranks"][0].keys() == OWN_KEYS
    assert whole["ranks"][0].keys() == {"rng", "looked_at", "monitored", "carried"}


def test_checkpoints_without_the_keys_that_came_later(tmp_path):
    began = build(tmp_path / "a", 1)
    began.train()
    path = last_checkpoint(began, 0)
    checkpoint = torch.load(path, weights_only=True)
    for key in LATER_KEYS:
        del checkpoint[key]
    del checkpoint["ranks"][0]["carried"]
    torch.save(checkpoint, path)
    trainer = build(tmp_path / "b", 2, ckpt_pretrained=path)
    trainer.train()
    assert len(trainer.loss_history["SupLoss"]) == 2


def test_a_checkpoint_with_code_in_it_is_not_loaded(tmp_path):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("the checkpoint's code was run",))

    torch.save({"state_dict": {}, "evil": Payload()}, tmp_path / "evil.pth.tar")
    trainer = build(tmp_path / "run", 1, ckpt_pretrained=tmp_path / "evil.pth.tar")
    with pytest.raises(pickle.UnpicklingError):
        trainer.train()


def test_resume_needs_the_same_generators(tmp_path):
    trainer = build(tmp_path / "a", 2)
    trainer.train()
    other = build(tmp_path / "b", 4, ckpt_pretrained=last_checkpoint(trainer, 1))
    other.eval_dataloader = None
    alone = "it alone has the random generators eval_dataloader.0..dataset.rng"
    with pytest.raises(ValueError, match=f"{alone}. Build this one alike, or begin"):
        other.train()


def test_starts_from_a_checkpoint_of_the_host_s_trainer(tmp_path):
    host = build(tmp_path / "a", 2, trainer=dinv.Trainer, non_blocking_transfers=False)
    host.train()
    trainer = build(tmp_path / "b", 3, ckpt_pretrained=last_checkpoint(host, 1))
    trainer.train()
    assert len(trainer.loss_history["SupLoss"]) == 3


def test_early_stopping_counts_on_after_a_resume(tmp_path):
    """The host compares the absolute epoch with a history that starts anew, and stops at once."""

    class Worsening(MSE):
        """Best in epoch 4."""

        calls = 0

        def metric(self, x_net, x, *args, **kwargs):
            Worsening.calls += 1
            epoch = (Worsening.calls - 1) // 4  # 4 evaluation batches an epoch
            return torch.full((len(x),), float(abs(epoch - 4)))

    stopped = []
    for resume in (False, True):
        Worsening.calls = 0
        options = {"early_stop": 3, "metrics": Worsening()}
        if resume:
            part = build(tmp_path / "part", 6, **options)
            part.train()
            options["ckpt_pretrained"] = last_checkpoint(part, 5)
        trainer = build(tmp_path / str(resume), 20, **options)
        trainer.train()
        stopped.append(len(trainer.loss_history["SupLoss"]))
    assert stopped == [
        9,
        9,
    ]  # epochs 0 to 8: three evaluations after the best one and the host's one more


@pytest.mark.parametrize("first, then, others", [(3, 1, 0), (1, 3, 0), (4, 4, 0), (1, 1, 1)])
def test_early_stopping_counts_evaluations(tmp_path, first, then, others):
    """The host takes them to be eval_interval epochs apart, and a history to be of one metric."""

    class Tenth(MSE):
        """Best in the tenth evaluation."""

        calls = 0

        def metric(self, x_net, x, *args, **kwargs):
            Tenth.calls += 1
            return torch.full((len(x),), float(abs((Tenth.calls - 1) // 4 - 9)))

    metrics = [Tenth(), *(type("Tenth", (MSE,), {})() for _ in range(others))]
    options = {"early_stop": 2, "metrics": metrics}
    part = build(tmp_path / "part", 10, eval_interval=first, **options)
    part.train()
    options |= {"eval_interval": then, "ckpt_pretrained": last_checkpoint(part, 9)}
    trainer = build(tmp_path / "whole", 60, **options)
    trainer.train()
    assert len(trainer.eval_loss_history["SupLoss"]) == 10 + 2 + 1  # the host's one more


def evaluate_twice(trainer):
    results = []
    for _ in range(2):
        trainer.reset_metrics()
        x = torch.ones(4, 2)
        loss, x_net, _ = trainer.compute_loss(trainer.physics[0], x, 1.1 * x, train=False)
        results.append((loss, x_net))
    return results


def test_evaluation_losses_are_noise_free_and_leave_no_graph(tmp_path):
    trainer = build(tmp_path, 1)
    trainer.train()
    (first, x_net), (second, _) = evaluate_twice(trainer)
    assert first == second and not x_net.requires_grad
    plain = dj.unjitter(trainer.model).eval()(1.1 * torch.ones(4, 2), trainer.physics[0])
    assert torch.equal(x_net, plain)


def test_the_host_s_evaluation_losses_are_noisy(tmp_path):
    """What the trainer is for: without it the same evaluation differs from call to call."""
    trainer = build(tmp_path, 1, trainer=dinv.Trainer, non_blocking_transfers=False)
    trainer.train()
    (first, _), (second, _) = evaluate_twice(trainer)
    assert first != second


def test_plain_trainer_trains_a_jittered_model(tmp_path):
    before = build(tmp_path, 0).model
    trainer = build(tmp_path, 3, trainer=dinv.Trainer, non_blocking_transfers=False)
    trainer.train()
    assert len(trainer.loss_history["SupLoss"]) == 3
    assert not torch.equal(
        before.prior[0].network[0].weight, trainer.model.prior[0].network[0].weight
    )


def test_best_model_survives_a_test(tmp_path):
    trainer = build(tmp_path, 3, metrics=PSNR(max_pixel=1.0))
    trainer.train()
    run, before = trainer.save_path, torch.get_rng_state()
    trainer.test(trainer.eval_dataloader)
    assert trainer.save_path == run and [p.name for p in tmp_path.iterdir()] == [Path(run).name]
    assert [p for p in Path(run).iterdir() if p.is_dir()] == []
    state = torch.get_rng_state()
    trainer.load_best_model()
    assert torch.equal(torch.get_rng_state(), state)  # loading weights does not rewind the noise
    assert not torch.equal(state, before)


def test_clipped_gradients_are_reported(tmp_path):
    trainer = build(tmp_path, 1, grad_clip=0.01)
    trainer.train()
    assert trainer.check_grad_val.avg > 0


def test_uneven_batches_are_averaged_right(tmp_path):
    trainer = build(tmp_path, 1)
    trainer.setup_train()
    for error, n in ((1.0, 4), (0.0, 1)):
        x = torch.zeros(n, 2)
        loss = trainer.losses[0](x=x, x_net=x + error, y=x, physics=None, model=None)
        trainer.logs_losses_eval[0].update(loss.numpy())
    assert trainer.logs_losses_eval[0].avg == pytest.approx(0.8)


@pytest.mark.parametrize("online", [True, False])
@pytest.mark.parametrize("trainer", ["jitter", "input", "attack"])
def test_masks_of_other_samples_are_refused(online, trainer):
    """
    Three masks for a last batch of one image would make three measurements of it: of deepinv's
    physics, as ours refuses them.
    """
    data = dinv.datasets.TensorDataset(x=torch.rand(4, 2, 8, 8), use_dict_output=True)

    def collate(items):
        x = torch.stack([item["x"] for item in items])
        masks = {"mask": torch.ones(3, 1, 8, 8)}
        return {"x": x, "params": masks} | ({} if online else {"y": x})

    model = dj.UnfoldedGD(dj.UnrolledDnCNN(2, depth=3, width=4), max_iter=1)
    build, options = {
        "jitter": (dj.JitterTrainer, {}),
        "input": (dj.InputJitterTrainer, {"sigma": 0.1}),
        "attack": (dj.AttackTrainer, {"attack": attack()}),
    }[trainer]
    run = build(
        model, dinv.physics.MRI(img_size=(8, 8)), torch.optim.Adam(model.parameters()),
        DataLoader(data, 3, collate_fn=collate), epochs=1, device="cpu", save_path=None,
        online_measurements=online, metrics=None, verbose=False, **options,
    )  # fmt: skip
    message = r"one reconstruction for each of 1 truths, got 3|x must have the shape of"
    with pytest.raises(ValueError, match=f"{message}|one batch size, got 1 and 3"):
        run.train()


@pytest.mark.parametrize("which", ["train_dataloader", "eval_dataloader", "test"])
def test_drop_last_is_refused(tmp_path, which):
    loader = DataLoader(NoisyPoints(torch.Generator()), 6, drop_last=True)
    trainer = build(tmp_path, 1, **({} if which == "test" else {which: loader}))
    with pytest.raises(ValueError, match="drop_last=False, got True: the host would lose"):
        trainer.test(loader) if which == "test" else trainer.train()


def test_no_warning_of_a_default(tmp_path, recwarn):
    build(tmp_path, 1).train()
    assert [str(w.message) for w in recwarn] == []


def counted(trainer):
    """Calls of the perturbation, with what came in and what went out."""
    calls, perturb = [], trainer.perturb

    def recorded(x, y, physics):
        calls.append((x, y, perturb(x, y, physics)))
        return calls[-1][-1]

    trainer.perturb = recorded
    return calls


PERTURBING = {
    "input jitter": {"trainer": dj.InputJitterTrainer, "sigma": 0.1},
    "attack": {"trainer": dj.AttackTrainer, "attack": attack()},
}


@pytest.mark.parametrize("scheme", PERTURBING)
def test_training_batches_alone_are_perturbed(tmp_path, scheme):
    trainer = build(tmp_path, 3, **PERTURBING[scheme])
    calls = counted(trainer)
    trainer.train()
    assert len(calls) == 3 * 4  # epochs times batches, none for evaluation
    assert all(not torch.equal(y, out) for _, y, out in calls)
    (first, _), (second, _) = evaluate_twice(trainer)
    assert first == second


@pytest.mark.parametrize("scheme", PERTURBING)
def test_unmeasured_entries_stay_zero(tmp_path, scheme):
    trainer = build(tmp_path, 1, **PERTURBING[scheme])
    trainer.setup_train()
    physics = dj.SingleCoilMRI(torch.tensor([0.0, 1.0, 1.0, 0.0]), img_size=(6, 4))
    trainer.model = dj.UnfoldedGD(torch.nn.Conv2d(2, 2, 3, padding=1), max_iter=2)
    x = torch.randn(3, 2, 6, 4)
    y = physics(x)
    moved = trainer.perturb(x, y, physics) != y
    assert torch.equal(moved, physics.mask.expand_as(moved) != 0)


def test_attack_training_is_the_equation(tmp_path):
    """Eq. (6): the loss is that of y + argmax; its gradient does not go through the attack."""
    trainer = build(tmp_path, 1, trainer=dj.AttackTrainer, attack=attack())
    trainer.setup_train()
    physics, x = trainer.physics[0], torch.ones(4, 2)
    y = 1.1 * x
    delta = trainer.attack(trainer.model, x, y, physics)
    assert delta.norm(dim=1).max() > 0.05
    assert all(p.grad is None for p in trainer.model.parameters())
    trainer.model.train()
    generator = trainer.model.fixed_point.iterator.jitter.noise.generator
    noise = generator.get_state()
    trainer.compute_loss(physics, x, y, train=True)
    gradients = [p.grad.clone() for p in trainer.model.parameters()]
    trainer.model.zero_grad()
    generator.set_state(noise)  # the jitter sounds in the training pass, and only there
    (trainer.model.train()(y + delta, physics) - x).square().mean().backward()
    for p, g in zip(trainer.model.parameters(), gradients, strict=True):
        assert torch.allclose(p.grad, g, atol=1e-7)


def test_attack_without_truth(tmp_path):
    trainer = build(tmp_path, 1, trainer=dj.AttackTrainer, attack=attack(objective="deviation"))
    trainer.setup_train()
    y = torch.ones(4, 2)
    assert not torch.equal(trainer.perturb(None, y, trainer.physics[0]), y)


class Recorder(dj.RobustTrainer):
    """Which batches of each epoch are attacked, and the size of what is added to the others."""

    def __post_init__(self):
        super().__post_init__()
        self.attacked, self.noise = {}, []

    def perturb(self, x, y, physics):
        perturbed = super().perturb(x, y, physics)
        radius = (perturbed - y).norm(dim=1)
        attacked = bool(torch.allclose(radius, torch.tensor(0.1), rtol=1e-4))
        self.attacked.setdefault(self._epoch.number, []).append(attacked)
        if not attacked:
            self.noise.append(perturbed - y)
        return perturbed


@pytest.mark.parametrize(
    "share, expected",
    [
        (1.0, [[True] * 4] * 5),
        (0.0, [[False] * 4] * 5),
        (0.5, [[False, True, False, True]] * 5),
        # Over the epochs, of which none may have a whole number of them
        (
            1 / 3,
            [[False, False, True, False], [False, True, False, False], [True, False, False, True]],
        ),
        (lambda epoch: epoch / 4, [[False] * 4, [False, False, False, True]]),
    ],
)
def test_share_of_the_batches(tmp_path, share, expected):
    trainer = build(
        tmp_path,
        5,
        trainer=Recorder,
        share=share,
        sigma=0.3,
        attack=dj.FrankWolfeAttack(dj.L2Ball(0.1), steps=1, keep="last"),
        eval_dataloader=None,
    )
    trainer.train()
    found = [trainer.attacked[epoch] for epoch in range(5)]
    assert found[: len(expected)] == expected
    if trainer.noise:
        noise = torch.cat(trainer.noise)
        assert noise.std().item() == pytest.approx(0.3, rel=0.4)


@pytest.mark.parametrize("loaders", [1, 2])
def test_a_share_of_epochs_of_one_batch(tmp_path, loaders):
    whole = [DataLoader(NoisyPoints(None), 24) for _ in range(loaders)]
    options = {"attack": attack(keep="last"), "train_dataloader": whole, "eval_dataloader": None}
    trainer = build(tmp_path, 6, trainer=Recorder, share=0.5, sigma=0.3, **options)
    trainer.physics = [trainer.physics] * loaders
    trainer.train()
    assert [trainer.attacked[n] for n in range(6)] == [[False] * loaders, [True] * loaders] * 3


def test_the_batches_between_attacks_are_as_they_are(tmp_path):
    trainer = build(tmp_path, 1, trainer=dj.AttackTrainer, attack=attack(), share=0.5)
    trainer.setup_train()
    x, y = torch.zeros(4, 2), torch.randn(4, 2)
    batches = []
    for _ in range(4):
        batches.append(trainer.perturb(x, y, trainer.physics[0]))
        trainer._epoch.passed += 1
    assert [torch.equal(batch, y) for batch in batches] == [True, False] * 2


def test_a_share_out_of_range_is_refused_when_its_epoch_comes(tmp_path):
    trainer = build(tmp_path, 3, trainer=dj.AttackTrainer, attack=attack(), share=lambda e: 2 * e)
    with pytest.raises(ValueError, match="share must be finite and lie from 0 to 1, got 2"):
        trainer.train()


def test_the_recipe_attacks_every_second_batch(tmp_path):
    trainer = build(tmp_path, 1, trainer=dj.RobustTrainer, attack=attack(), sigma=0.1)
    assert trainer.share == 0.5


def test_persistent_perturbations_follow_their_samples(tmp_path):
    """One step per epoch on a fixed model does the work of many steps, in any order of samples."""
    torch.manual_seed(0)
    network = torch.nn.Linear(8, 8)
    with torch.no_grad():
        network.weight.copy_(torch.diag(torch.linspace(-0.2, 0.9, 8)))
    x = torch.randn(20, 8)
    y = x + 0.01 * torch.randn(20, 8)
    physics = dinv.physics.Denoising()
    model = dj.UnfoldedGD(network, stepsize=0.5, max_iter=5, trainable_params=[])
    data = dj.IndexedDataset(dinv.datasets.TensorDataset(x=x, y=y))
    trainer = build(
        tmp_path,
        30,
        trainer=dj.AttackTrainer,
        attack=dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=1),
        persistent=True,
        train_dataloader=DataLoader(data, 6, shuffle=True),
        eval_dataloader=None,
        compute_eval_losses=False,
        online_measurements=False,
        scheduler=None,
    )
    trainer.model, trainer.physics = model, physics
    trainer.optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer.train()
    kept = torch.stack([trainer._deltas.known[0, i] for i in range(20)])

    def error(delta):
        return (model.eval()(y + delta, physics) - x).square().sum(1)

    many = error(dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=30)(model, x, y, physics))
    one = error(dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=1)(model, x, y, physics))
    assert torch.allclose(error(kept), many, rtol=1e-3)
    assert (one < 0.99 * many).any()


def test_persistent_needs_indices(tmp_path):
    loader = DataLoader(NoisyPoints(torch.Generator()), 6)
    options = {"trainer": dj.AttackTrainer, "attack": attack(), "persistent": True}
    trainer = build(tmp_path, 1, train_dataloader=loader, **options)
    with pytest.raises(ValueError, match="got 0 for a batch of 6: wrap the data set"):
        trainer.train()


def test_monitor_warns_of_catastrophic_overfitting(tmp_path):
    options = {"trainer": dj.AttackTrainer, "attack": attack(0.01), "monitor": attack(0.5)}
    trainer = build(tmp_path, 2, **options)
    trainer.train()
    assert len(trainer.monitor_history) == 2 and min(trainer.monitor_history) > 1
    trainer.monitor_history[:] = [1.0, 1.0]
    with pytest.warns(UserWarning, match="Epoch 0: .* up from 1.00: catastrophic overfitting"):
        trainer.train()


class Shown(dj.PGDAttack):
    """Notes the radii it is called with, and what the noise of the physics is."""

    def run(self, model, x, y, physics, *args, **kwargs):
        self.radii = self.budget.radii(y, physics)
        return super().run(model, x, y, physics, *args, **kwargs)


@pytest.mark.parametrize("batch", [3, 4])
def test_the_monitor_sees_the_physics_of_its_batch(tmp_path, batch):
    """Also a noise level per sample, inside its noise model; the last batch is smaller."""
    ball = dj.L2Ball(1.0, relative_to="noise")
    levels = dinv.physics.generator.SigmaGenerator(0.01, 0.5, rng=torch.Generator().manual_seed(0))
    seen, monitor = [], Shown(ball, steps=2)

    class Noting(dj.AttackTrainer):
        def perturb(self, x, y, physics):
            seen.append(ball.radii(y, physics))
            return super().perturb(x, y, physics)

    trainer = build(
        tmp_path,
        2,
        trainer=Noting,
        attack=dj.FrankWolfeAttack(ball, steps=1),
        monitor=monitor,
        train_dataloader=DataLoader(dj.IndexedDataset(dj.PointDataset(10)), batch),
        physics_generator=levels,
        eval_dataloader=None,
        compute_eval_losses=False,
    )
    trainer.train()
    assert len(trainer.monitor_history) == 2
    assert torch.equal(monitor.radii, seen[0])
    # and the physics is again that of the last batch
    assert torch.equal(ball.radii(torch.zeros(len(seen[-1]), 2), trainer.physics[0]), seen[-1])


def stacked(*noises):
    """Two views of an image, one of them with a mask."""
    mask = torch.zeros(1, 4, 6)
    mask[..., ::2] = 1
    first, second = noises or [dinv.physics.GaussianNoise(s) for s in (0.1, 0.2)]
    return dinv.physics.StackedLinearPhysics(
        [
            dinv.physics.Denoising(first),
            dinv.physics.Inpainting((1, 4, 6), mask=mask, noise_model=second),
        ]
    )


class Push(dj.FrankWolfeAttack):
    """A constant perturbation, for measurements of several parts."""

    def forward(self, model, x, y, physics, init=None):
        return TensorList([torch.full_like(part, 0.5) for part in y])


def on_stacked_physics(folder, trainer, **options):
    torch.manual_seed(0)
    physics = stacked()
    model = dj.UnfoldedGD(dj.UnrolledDnCNN(1, depth=3, width=4), max_iter=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    data = dinv.datasets.TensorDataset(x=torch.rand(6, 1, 4, 6), use_dict_output=True)
    options = {"epochs": 2, "online_measurements": True, "device": "cpu"} | options
    options |= {"save_path": folder, "verbose": False, "metrics": PSNR()}
    loader = DataLoader(dj.IndexedDataset(data), 2)
    return trainer(
        model, physics, optimizer, loader, eval_dataloader=DataLoader(data, 2), **options
    )


@pytest.mark.parametrize("level", [{"sigma": 0.3}, {"eps": 0.5}])
def test_input_jittering_of_stacked_physics(tmp_path, level):
    """Noise on what each part measures."""
    trainer = on_stacked_physics(tmp_path, dj.InputJitterTrainer, **level)
    trainer.train()
    y = trainer.physics[0](torch.rand(100, 1, 4, 6))
    added = trainer.perturb(None, y, trainer.physics[0]) - y
    assert isinstance(added, TensorList)
    assert added[0].std().item() == pytest.approx(trainer.sigma, rel=0.1)
    measured = added[1][..., ::2]
    assert measured.std().item() == pytest.approx(trainer.sigma, rel=0.1)
    assert not added[1][..., 1::2].any()


def test_attacks_on_stacked_physics(tmp_path):
    trainer = on_stacked_physics(tmp_path, dj.AttackTrainer, attack=Push(dj.L2Ball(1.0)))
    calls = counted(trainer)
    trainer.train()
    assert len(calls) == 2 * 3
    for _, y, out in calls:
        assert all(torch.allclose(part, torch.tensor(0.5)) for part in out - y)


def test_measurements_of_several_parts_that_are_not_finite(tmp_path):
    trainer = on_stacked_physics(tmp_path, dj.RobustTrainer, attack=Push(dj.L2Ball(1.0)), sigma=0.1)
    trainer.on_non_finite = "skip"
    samples = trainer.get_samples_online

    def spoilt(iterators, g):
        x, y, physics = samples(iterators, g)
        if trainer._epoch.passed == 1:
            y[1][0, 0, 0, 0] = math.nan
        return x, y, physics

    trainer.get_samples_online = spoilt
    with pytest.warns(UserWarning, match=r"batch 1 \(y not finite\): the batch is left"):
        trainer.train()
    assert trainer.skipped == [(0, 1), (1, 1)]


def test_persistent_perturbations_have_one_part(tmp_path):
    trainer = on_stacked_physics(
        tmp_path, dj.AttackTrainer, attack=Push(dj.L2Ball(1.0)), persistent=True
    )
    with pytest.raises(
        ValueError, match="one tensor for each sample, got measurements of 2 parts: set"
    ):
        trainer.train()


def worst_case(alpha, eps, signal, noise):
    return ((alpha**2 * noise + (1 - alpha) ** 2 * signal) ** 0.5 + alpha * eps) ** 2


@pytest.mark.parametrize("eps", [0.0, 0.5, 3.0])
def test_input_jitter_sigma_is_the_best_in_the_worst_case(eps):
    """Against a search over the shrinkage, in high dimension."""
    n, sigma = 10000, 0.05
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(sigma))
    s = 0.2 * torch.randn(50, n, dtype=torch.float64)
    y = s + sigma * torch.randn_like(s)
    noise, signal = sigma**2 * n, y.square().sum(1).mean().item() - sigma**2 * n
    alphas = torch.linspace(0, 1, 200001, dtype=torch.float64)
    best = alphas[worst_case(alphas, eps, signal, noise).argmin()].item()
    level = dj.input_jitter_sigma(eps, y, physics)
    assert signal / (signal + noise + level**2 * n) == pytest.approx(best, abs=1e-5)


def test_the_level_for_stacked_physics_is_that_of_all_parts_together():
    """Two noisy views in a list, or side by side in one tensor."""
    noise, x = dinv.physics.GaussianNoise(0.1), torch.rand(50, 1, 4, 6)
    whole = dinv.physics.Denoising(noise)
    y = whole(torch.cat([x, x], 1))
    parts = dinv.physics.StackedLinearPhysics([dinv.physics.Denoising(noise)] * 2)
    expected = dj.input_jitter_sigma(0.5, y, whole)
    level = dj.input_jitter_sigma(0.5, TensorList([y[:, :1], y[:, 1:]]), parts)
    assert level == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("sigma", [0.1, 0.06 + 0.08j, -0.1])
def test_the_level_for_complex_noise(sigma):
    """Its real and its imaginary part make noise: their energy counts."""
    y = torch.randn(50, 8, dtype=torch.complex64)
    physics, plain = (
        dinv.physics.Denoising(dinv.physics.GaussianNoise(torch.tensor(s))) for s in (sigma, 0.1)
    )
    expected = dj.input_jitter_sigma(0.5, y, plain)
    assert dj.input_jitter_sigma(0.5, y, physics) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "noise, message",
    [
        (
            dinv.physics.ZeroNoise(),
            "measurements with deepinv's GaussianNoise, but the physics has ZeroNoise: give sigma",
        ),
        (dinv.physics.PoissonNoise(0.1), "but the physics has PoissonNoise: give sigma"),
        (
            dinv.physics.GaussianNoise(torch.ones(3)),
            "the physics' sigma must be a number or one number per sample, shape .6,., got",
        ),
    ],
)
def test_noise_without_a_level(tmp_path, noise, message):
    physics = dinv.physics.Denoising(noise)
    with pytest.raises(ValueError, match=message):
        dj.input_jitter_sigma(0.1, torch.ones(6, 2), physics)
    data = dinv.datasets.TensorDataset(x=torch.ones(6, 2), y=torch.ones(6, 2))
    options = {"train_dataloader": DataLoader(data, 6), "online_measurements": False}
    trainer = build(tmp_path, 1, trainer=dj.InputJitterTrainer, eps=0.1, **options)
    trainer.physics = physics
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_parts_of_a_physics_that_is_not_stacked():
    y = TensorList([torch.ones(4, 2)] * 2)
    with pytest.raises(TypeError, match="need a deepinv StackedPhysics .* got Denoising"):
        dj.input_jitter_sigma(0.1, y, dinv.physics.Denoising())


def test_input_jitter_level_from_a_radius(tmp_path):
    """That of the first batch, also of a resumed training, unless that has another radius."""
    trainer = build(tmp_path, 1, trainer=dj.InputJitterTrainer, eps=0.1)
    trainer.train()
    assert 0 < trainer.sigma < 1
    for eps, factor in ((0.1, 1), (0.3, 3)):
        path = last_checkpoint(trainer, 0)
        options = {"eps": eps, "ckpt_pretrained": path}
        again = build(tmp_path / "again", 2, trainer=dj.InputJitterTrainer, **options)
        again.train()
        assert (again.sigma == trainer.sigma) == (factor == 1)
        assert again.sigma == pytest.approx(factor * trainer.sigma, rel=0.5)


@pytest.mark.parametrize(
    "options, error, message",
    [
        (
            {"trainer": dj.InputJitterTrainer},
            ValueError,
            "exactly one of sigma and eps .* got sigma=None",
        ),
        (
            {"trainer": dj.InputJitterTrainer, "sigma": 0.1, "eps": 1.0},
            ValueError,
            "got sigma=0.1, eps=1.0",
        ),
        (
            {"trainer": dj.InputJitterTrainer, "sigma": -0.1},
            ValueError,
            "sigma must be finite and at least 0, got -0.1",
        ),
        (
            {"trainer": dj.InputJitterTrainer, "eps": "1"},
            TypeError,
            "eps must be a number, got '1'",
        ),
        (
            {"trainer": dj.AttackTrainer, "attack": attack(), "share": "all"},
            TypeError,
            "share must be a number, got 'all'",
        ),
        (
            {"trainer": dj.AttackTrainer, "attack": 0.1},
            TypeError,
            "attack must be a dj.Attack such as Frank.* got float",
        ),
        (
            {"trainer": dj.AttackTrainer, "attack": attack(), "share": 1.5},
            ValueError,
            "share must be finite and lie from 0 to 1, got 1.5",
        ),
        (
            {"trainer": dj.RobustTrainer, "attack": attack()},
            ValueError,
            "exactly one of sigma and eps must be given",
        ),
        (
            {"trainer": dj.AttackTrainer, "attack": attack(), "monitor": 3},
            TypeError,
            "monitor must be a dj.Attack such as Frank.* got int",
        ),
        (
            {
                "trainer": dj.AttackTrainer,
                "attack": dj.FrankWolfeAttack(dj.L2Ball(1.0, domain="image")),
                "persistent": True,
            },
            ValueError,
            "got a budget in the image domain",
        ),
    ],
)
def test_refused(tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        build(tmp_path, 1, **options)


def test_a_radius_beyond_the_signal_has_no_jitter_level():
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    with pytest.raises(ValueError, match="below the norm of the signal, here .* got 9.0"):
        dj.input_jitter_sigma(9.0, torch.ones(4, 2), physics)
    for eps, error, message in [
        (-1.0, ValueError, "eps must be finite and at least 0, got -1.0"),
        (math.nan, ValueError, "eps must be finite and at least 0, got nan"),
        (True, TypeError, "eps must be a number, got True"),
        ("big", TypeError, "eps must be a number, got 'big'"),
    ]:
        with pytest.raises(error, match=message):
            dj.input_jitter_sigma(eps, torch.ones(4, 2), physics)
    with pytest.raises(ValueError, match="y must be finite, got NaN or infinity"):
        dj.input_jitter_sigma(0.1, torch.full((4, 2), math.nan), physics)
