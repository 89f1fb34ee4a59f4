"""
What two processes do: started by test_parallel.py under torchrun, and imported for one process.

Every scenario takes a folder, and returns what the test looks at; rank r writes it to ``r.pt``.
"""

import os
import random
import signal
import sys
import warnings
from pathlib import Path

import deepinv as dinv
import numpy as np
import torch
from deepinv.distributed import DistributedContext, distribute
from deepinv.loss.metric import MSE
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler

import deepinv_jitter as dj
from deepinv_jitter.training import distributed as ranks

torch.set_num_threads(1)
RANKS = 2


class Signals1D(torch.utils.data.Dataset):
    """Truths and measurements, always the same."""

    def __init__(self, count, seed=0):
        draw = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 8, generator=draw)
        self.y = self.x + 0.1 * torch.randn(count, 8, generator=draw)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.y[i]}


def sharded(data, batch_size, shuffle=False):
    """A loader of so many samples on all ranks together."""
    share = batch_size // ranks.count()
    if ranks.count() == 1:
        return DataLoader(data, share, shuffle=shuffle)
    sampler = DistributedSampler(data, shuffle=shuffle, seed=3)
    return DataLoader(data, share, sampler=sampler)


def evaluation(data):
    sampler = dj.ShardSampler(data) if ranks.count() > 1 else None
    return DataLoader(data, 2, sampler=sampler)


def build(folder, trainer=dj.JitterTrainer, *, jitter=None, seed=0, count=12, **kwargs):
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))
    if jitter is not None:
        generator = torch.Generator().manual_seed(seed + 1)
        jitter = dj.GaussianJitter(jitter, generator=generator)
    model = dj.UnfoldedGD(network, stepsize=0.5, max_iter=3, jitter=jitter)
    arguments = {
        "train_dataloader": sharded(dj.IndexedDataset(Signals1D(count)), 4),
        "eval_dataloader": evaluation(Signals1D(7, seed=1)),
        "metrics": MSE(),
        "epochs": 2,
        "compute_eval_losses": True,
        "device": "cpu",
        "save_path": folder,
        "verbose": False,
    } | kwargs
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return trainer(model, physics, optimizer, **arguments)


def weights(trainer):
    return {name: w.clone() for name, w in trainer.model.state_dict().items()}


def outcome(trainer):
    """Train, and note every gradient."""
    gradients = []

    def note(*_):
        grads = [p.grad for p in trainer.model.parameters()]
        gradients.append([None if g is None else g.clone() for g in grads])

    trainer.optimizer.register_step_pre_hook(note)
    trainer.train()
    return {
        "gradients": gradients,
        "weights": weights(trainer),
        "loss": trainer.loss_history["SupLoss"],
        "eval loss": trainer.eval_loss_history["SupLoss"],
        "metric": trainer.eval_metrics_history["MSE"],
    }


# Without noise, and with attacks that start from the same place for each sample
NOISELESS = {
    "jitter": (dj.JitterTrainer, {}),
    "input jitter": (dj.InputJitterTrainer, {"sigma": 0.0}),
    "attack": (
        dj.AttackTrainer,
        {"attack": dj.FrankWolfeAttack(dj.L2Ball(0.3), steps=2), "grad_clip": 0.5},
    ),
    "persistent attack": (
        dj.AttackTrainer,
        {"attack": dj.FrankWolfeAttack(dj.L2Ball(0.3), steps=1), "persistent": True},
    ),
}


def gradients(folder):
    return {
        name: outcome(build(folder / name, trainer, **options))
        for name, (trainer, options) in NOISELESS.items()
    }


def noise(folder):
    """What the trainers add to measurements and iterates, twice from one seed."""
    rounds = []
    for number in range(2):
        added = []

        class Noted(dj.InputJitterTrainer):
            def perturb(self, x, y, physics):
                perturbed = super().perturb(x, y, physics)
                added.append(perturbed - y)
                return perturbed

        trainer = build(folder / str(number), Noted, sigma=0.1, jitter=0.1)
        law = trainer.model.fixed_point.iterator.jitter.noise
        trainer.train()
        rounds.append([torch.cat(added), law(torch.zeros(1, 50)), torch.randn(5)])
    return rounds


def resumed(folder):
    """Four epochs at once, and two and two."""
    options = {"jitter": 0.1, "trainer": dj.AttackTrainer, "persistent": True}
    options |= {"attack": dj.FrankWolfeAttack(dj.L2Ball(0.3), steps=1)}
    data = dj.IndexedDataset(Signals1D(12))
    options |= {"train_dataloader": sharded(data, 4, shuffle=True)}
    whole = build(folder / "whole", epochs=4, **options)
    whole.train()
    part = build(folder / "part", epochs=2, **options)
    part.train()
    after = build(
        folder / "after",
        epochs=4,
        seed=7,
        ckpt_pretrained=dj.latest_checkpoint(folder / "part"),
        **options,
    )
    after.train()
    after.load_best_model()
    last = torch.load(dj.latest_checkpoint(folder / "after"), weights_only=True)
    return {
        "whole": weights(whole),
        "resumed": last["state_dict"],
        "deltas of whole": whole._deltas.known,
        "deltas": after._deltas.known,
    }


def from_one(folder):
    """A run that one process began, if there is one."""
    path = dj.latest_checkpoint(folder)
    if path is None:
        return None
    trainer = build(folder / "two", epochs=3, jitter=0.1, ckpt_pretrained=path)
    trainer.train()
    return {"weights": weights(trainer), "loss": trainer.loss_history["SupLoss"]}


class Normalised(torch.nn.Module):
    """A network with running means; and with a parameter that is without use, or not."""

    def __init__(self, unused=False):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 8)
        )
        self.idle = torch.nn.Parameter(torch.zeros(3)) if unused else None

    def forward(self, x):
        return self.layers(x)


def with_network(network, folder, **options):
    trainer = build(folder, **options)
    trainer.model.prior[0].network = network
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    return trainer


def averaged(folder):
    """Averaged weights: four epochs at once; two and two; and cut off amid the second."""

    class Told(dj.JitterTrainer):
        def perturb(self, x, y, physics):
            here = self._epoch.number, self._epoch.passed
            if here == (1, 1) and ranks.own() == 0 and self.epochs == 5:
                os.kill(os.getpid(), signal.SIGTERM)
            return y

    def run(name, epochs, **options):
        torch.manual_seed(0)
        trainer = with_network(
            Normalised(), folder / name, trainer=Told, ema=0.9, epochs=epochs, **options
        )
        try:
            trainer.train()
        except SystemExit:
            return weights(trainer)
        last = torch.load(dj.latest_checkpoint(folder / name), weights_only=True)
        raw = {f"raw {k}": v for k, v in last["ema"]["raw"].items()}
        return weights(trainer) | raw | {"steps": torch.tensor(last["ema"]["steps"])}

    whole, _, cut = run("whole", 4), run("part", 2), run("cut", 5)
    return {
        "whole": whole,
        "resumed": run("after", 4, ckpt_pretrained=dj.latest_checkpoint(folder / "part")),
        "cut": cut,
        "cut and resumed": run("on", 4, ckpt_pretrained=dj.latest_checkpoint(folder / "cut")),
    }


def unused(folder):
    """Whether DistributedDataParallel looks for parameters without use."""
    looks = {}
    for name, idle in {"idle": True, "busy": False}.items():
        trainer = with_network(Normalised(idle), folder / name)
        trainer.optimizer.register_step_pre_hook(
            lambda *_: looks.__setitem__(name, trainer._gradients._model.find_unused_parameters)
        )
        trainer.train()
    return looks


def epochs(folder):
    """The order of the samples in each epoch."""
    seen = []

    class Noted(dj.JitterTrainer):
        def perturb(self, x, y, physics):
            seen.append(y[:, 0])
            return y

    data = Signals1D(12)
    trainer = build(folder, Noted, train_dataloader=sharded(data, 12, shuffle=True))
    trainer.train()
    return seen


def tested(folder):
    trainer = build(folder)
    trainer.train()
    results = trainer.test(evaluation(Signals1D(7, seed=2)), log_raw_metrics=True)
    return {k: v for k, v in results.items() if "MSE" in k}


def robustness(folder):
    torch.manual_seed(0)
    model = dj.UnfoldedGD(torch.nn.Linear(8, 8), stepsize=0.5, max_iter=3)
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    report = dj.evaluate_robustness(
        model,
        DataLoader(Signals1D(7), 2),
        physics,
        epsilons=[0.1, 0.3],
        attacks=[dj.APGDAttack(dj.L2Ball(1.0), steps=5), dj.RandomAttack(dj.L2Ball(1.0))],
        metrics={"MSE": MSE()},
        draws=3,
        state=folder / "state",
        distributed=True,
        verbose=False,
    )
    return {"values": report.values, "table": report.table(), "digests": report.digests}


def left_out(folder):
    """A sample that is not a number, on one rank."""
    data = Signals1D(12)
    data.y[5] = float("nan")
    options = {"train_dataloader": sharded(dj.IndexedDataset(data), 4)}
    trainer = build(folder / "skip", on_non_finite="skip", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.train()
    result = {"skipped": trainer.skipped, "weights": weights(trainer)}
    trainer = build(folder / "raise", **options)
    try:
        trainer.train()
    except FloatingPointError as error:
        result |= {"error": str(error), "files": os.listdir(trainer.save_path)}
    return result


def interrupted(folder):
    """The last process is told to end, amid training and amid validation; and all go on."""
    outcomes = []
    for number, place in enumerate([(1, 0), (0, 3)]):

        class Told(dj.JitterTrainer):
            told = False

            def compute_loss(self, *args, **kwargs):
                at = self._epoch.number, self._epoch.passed
                if at == place and ranks.own() == ranks.count() - 1:
                    if not self.told:
                        os.kill(os.getpid(), signal.SIGTERM)
                    self.told = True
                return super().compute_loss(*args, **kwargs)

        here = folder / str(number)
        trainer = build(here, Told, jitter=0.1)
        try:
            trainer.train()
        except SystemExit as end:
            reached = trainer._epoch.number, trainer._epoch.passed
            outcomes.append({"status": end.code, "place": reached})
        path = dj.latest_checkpoint(here)
        again = build(here, jitter=0.1, seed=7, ckpt_pretrained=path)
        again.train()
        outcomes[-1] |= {"file": path.name, "end": weights(again)}
    whole = build(folder / "whole", jitter=0.1)
    whole.train()
    return [*outcomes, weights(whole)]


def refused(folder):
    """Loaders and models with which ranks would do the wrong thing."""
    data = Signals1D(7)
    plain = DataLoader(data, 2)
    repeating = DataLoader(data, 2, sampler=DistributedSampler(data))
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(8, 8))

    class Outside(dj.JitterTrainer):
        def model_inference(self, y, physics, x=None, train=True, **kwargs):
            return self.model(y, physics)

    tries = {
        "training": lambda: build(None, train_dataloader=plain).train(),
        "evaluation": lambda: build(None, eval_dataloader=repeating).train(),
        "test": lambda: build(None).test(repeating),
        "few": lambda: dj.ShardSampler(range(1)),
        "outside": lambda: build(None, Outside).train(),
        "model": lambda: dj.JitterTrainer(model, None, None, plain, device="cpu"),
    }
    messages = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except (TypeError, ValueError, NotImplementedError) as error:
            messages[name] = f"{type(error).__name__}: {error}"
    return messages


def split(folder):
    """One model on all ranks, by deepinv.distributed, jittered alike or each for itself."""
    outputs = []
    for seed in (0, ranks.own()):
        with DistributedContext(device_mode="cpu") as context:
            torch.manual_seed(0)
            blurs = [
                dinv.physics.Blur(torch.rand(1, 1, 3, 3), padding="circular") for _ in range(RANKS)
            ]
            physics = distribute(dinv.physics.StackedLinearPhysics(blurs), context)
            model = dinv.optim.GD(
                data_fidelity=dinv.optim.L2(),
                prior=dinv.optim.RED(lambda x, *_: 0.9 * x),
                stepsize=0.1,
                max_iter=3,
                unfold=True,
                trainable_params=["stepsize"],
            )
            generator = torch.Generator().manual_seed(seed)
            dj.jitter(model, dj.GaussianJitter(0.1, generator=generator))
            x = torch.rand(1, 1, 8, 8)
            y = physics(x)
            outputs.append(distribute(model, context).train()(y, physics).detach())
    return outputs


def tiled(folder):
    """Steps of a jittered network whose operators and tiles are shared by the processes."""
    outcomes = {}
    for name, unfolded in {"SGD": dj.UnfoldedGD, "SPGD": dj.UnfoldedPGD}.items():
        torch.manual_seed(0)
        blurs = [
            dinv.physics.Blur(torch.rand(1, 1, 3, 3) / 4.5, padding="circular")
            for _ in range(RANKS)
        ]
        denoiser = dinv.models.DnCNN(1, 1, depth=3, nf=8, pretrained=None)
        with torch.no_grad():  # else the iterations blow up
            for p in denoiser.parameters():
                p *= 0.5
        noise = dj.GaussianJitter(0.1, generator=torch.Generator().manual_seed(0))
        model = unfolded(denoiser, stepsize=0.3, max_iter=3, jitter=noise, checkpoint=True)
        x = torch.rand(1, 1, 32, 32)
        with DistributedContext(device_mode="cpu") as context:
            physics = distribute(dinv.physics.StackedLinearPhysics(blurs), context)
            distribute(model, context, patch_size=16, overlap=4, tiling_dims=(2, 3))
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            y = physics(x)
            for _ in range(2):
                optimizer.zero_grad()
                loss = (model.train()(y, physics) - x).square().mean()
                loss.backward()
                optimizer.step()
            try:
                dj.PGDAttack(dj.L2Ball(0.1), steps=1, checks=False)(model, x, y, physics)
                said = ""
            except NotImplementedError as error:
                said = str(error)
        outcomes[name] = {"loss": loss.item()} | dict(model.state_dict())
        outcomes[f"attack on {name}"] = said
    return outcomes


class Masked(Signals1D):
    """Each sample is measured with a mask of its own."""

    def __getitem__(self, i):
        mask = torch.ones(8)
        mask[i % 8] = 0
        return {"x": self.x[i], "y": mask * self.y[i], "params": {"mask": mask}}


class Holding(torch.nn.Module):
    """A network that holds a physics, and notes what it is shown off that one's masks."""

    def __init__(self, physics):
        super().__init__()
        self.physics, self.layer, self.unmeasured = physics, torch.nn.Linear(8, 8), []

    def forward(self, y, physics):
        self.unmeasured.append((y * (1 - self.physics.mask)).abs().max().item())
        return self.layer(self.physics.A_adjoint(y))


def held(folder):
    """Masks differ from process to process, also those of a physics in the model."""
    trainer = build(folder, train_dataloader=sharded(Masked(12), 4), eval_dataloader=None)
    trainer.physics = dinv.physics.Inpainting((8,), mask=torch.ones(8))
    trainer.model = Holding(trainer.physics)
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    trainer.train()
    return trainer.model.unmeasured


def fails(folder):
    """One rank comes upon a broken file."""

    class Broken(Signals1D):
        def __getitem__(self, i):
            if i == 5:
                raise OSError("sample 5 is broken")
            return super().__getitem__(i)

    build(folder, train_dataloader=sharded(Broken(12), 4)).train()


SCENARIOS = [gradients, noise, resumed, from_one, epochs, tested, robustness, left_out]
SCENARIOS += [interrupted, refused, split, tiled, averaged, unused, held]

if __name__ == "__main__":
    out = Path(sys.argv[1])
    distributed.init_process_group("gloo")
    results = {}
    for scenario in SCENARIOS:
        results[scenario.__name__] = scenario(out / scenario.__name__)
    torch.save(results, out / f"{ranks.own()}.pt")
    fails(out / "fails")
