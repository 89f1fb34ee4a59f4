r"""What the library promises about time and memory, measured against its goals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import deepinv as dinv
import torch
from cases import Case
from deepinv.datasets import TensorDataset
from measure import Ratio, in_turns, peak_memory
from plain import training_step
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import deepinv_jitter as dj

BALL = dj.L2Ball(1.0)


@dataclass(frozen=True)
class Row:
    """A line of the table. Without a goal it is there for comparison."""

    what: str
    case: str
    ratio: Ratio
    goal: float | None = None

    @property
    def met(self) -> str:
        if self.goal is None:
            return ""
        return "yes" if self.ratio.median <= self.goal else "no"


def steps(case: Case, rounds: int) -> Iterator[Row]:
    """Steps of every scheme against the bare network and against the plain loop."""
    frank_wolfe, once = (dj.FrankWolfeAttack(BALL, steps=n, keep="last") for n in (3, 1))
    channels_last = case.model().to(memory_format=torch.channels_last)
    times = in_turns(
        {
            "floor": case.floor(),
            "floor, channels last": case.floor(torch.channels_last),
            "MSE": case.step(case.model()),
            "MSE again": case.step(case.model()),
            "MSE, channels last": case.step(channels_last),
            "SGD jittering": case.step(case.model(jitter=0.1)),
            "plain MSE": _plain(case),
            "plain SGD jittering": _plain(case, jitter=0.1),
            "FW 3": case.step(case.model(), frank_wolfe),
            "1 step": case.step(case.model(), once),
        },
        rounds,
    )

    def row(what: str, a: str, b: str, goal: float | None = None) -> Row:
        return Row(what, case.name, times.ratio(a, b), goal)

    yield row("a step / the same step (resolution)", "MSE again", "MSE")
    yield row("MSE step / bare network", "MSE", "floor", 1.05)
    yield row("the same, both in channels_last", "MSE, channels last", "floor, channels last", 1.05)
    yield row("MSE step, channels_last / default", "MSE, channels last", "MSE")
    yield row("SGD jittering / MSE, whole steps", "SGD jittering", "MSE")
    yield row("MSE step / plain loop's", "MSE", "plain MSE")
    yield row("SGD jittering / plain loop's", "SGD jittering", "plain SGD jittering")
    yield row("AT, default attack (3 Frank-Wolfe steps) / MSE", "FW 3", "MSE", 3.2)
    yield row("AT, persistent, 1 step / MSE", "1 step", "MSE", 1.8)


def attack_steps(case: Case, counts: tuple[int, ...], rounds: int) -> Iterator[Row]:
    """Steps of adversarial training with the paper's attack, and the plain loop's."""
    frank_wolfe = dj.FrankWolfeAttack(BALL, steps=3, keep="last")
    functions = {"MSE": case.step(case.model()), "FW 3": case.step(case.model(), frank_wolfe)}
    for n in counts:
        attack = dj.PGDAttack(BALL, steps=n, keep="last")
        functions[f"PGD {n}"] = case.step(case.model(), attack)
        functions[f"plain PGD {n}"] = _plain(case, steps=n)
    times = in_turns(functions, rounds)
    for n in counts:
        what, goal = f"AT, PGD-{n} / MSE", 1.05 * (1 + 2 * n / 3)
        yield Row(what, case.name, times.ratio(f"PGD {n}", "MSE"), goal)
        ratio = times.ratio(f"PGD {n}", f"plain PGD {n}")
        yield Row(f"AT, PGD-{n} / plain loop's", case.name, ratio)
    most = max(counts)
    what = f"AT, default attack / plain loop's PGD-{most}"
    yield Row(what, case.name, times.ratio("FW 3", f"plain PGD {most}"))


def small_steps(case: Case, rounds: int) -> Iterator[Row]:
    """The points, where starting operations is all there is."""
    functions = {
        "floor": case.floor(),
        "MSE": _lean(case, case.model()),
        "SGD jittering": _lean(case, case.model(jitter=0.1)),
        "plain MSE": _plain(case),
        "plain SGD jittering": _plain(case, jitter=0.1),
        "epoch": _trainer_epoch(case, prebatched=True),
        "epoch, sample by sample": _trainer_epoch(case, prebatched=False),
    }
    times = in_turns(functions, rounds)

    def row(what, a, b, goal=None, scale=1.0):
        return Row(what, case.name, times.ratio(a, b, scale), goal)

    yield row("MSE step / bare network", "MSE", "floor")
    yield row("MSE step / plain loop's", "MSE", "plain MSE", 0.85)
    yield row("SGD jittering / plain loop's", "SGD jittering", "plain SGD jittering", 0.85)
    per_step = 1 / EPOCH
    yield row(
        "Trainer, batches ready / the same model in a lean loop", "epoch", "MSE", 1.5, per_step
    )
    yield row(
        "Trainer, sample by sample / the same", "epoch, sample by sample", "MSE", scale=per_step
    )


def components(case: Case, rounds: int) -> Iterator[Row]:
    """Parts of a step that are too small to be seen in it."""
    noise, (x, _, _) = dj.GaussianJitter(0.1, "relative"), case.batch_of()
    formats = {"": x, ", channels_last": x.to(memory_format=torch.channels_last)}
    functions = {"MSE": case.step(case.model())}
    for name, iterate in formats.items():
        functions["jitter" + name] = lambda iterate=iterate: [
            iterate + noise(iterate, k) for k in range(case.iterations)
        ]
    times = in_turns(functions, rounds)
    for name in formats:
        ratio = times.ratio("jitter" + name, "MSE")
        yield Row(f"noise of SGD jittering / MSE step{name}", case.name, ratio, 0.01)


def gradients(cases: list[Case], rounds: int) -> Iterator[Row]:
    """The gradient of a section's data fidelity, forward and backward, against dense matrices."""
    for case in cases:
        A, (x, y, physics) = case.dense(), case.batch_of()
        known = dj.NormalL2().given(physics.A_adjoint(y))
        times = in_turns(
            {
                "ours": _derivative(lambda x: known.grad(x, y, physics), x),
                "dense": _derivative(lambda x: (A.T @ A) @ x - A.T @ y, x),
            },
            rounds,
        )
        goal = {352: 0.75, 4096: 0.02}.get(case.size[0])
        ratio = times.ratio("ours", "dense")
        yield Row("seismic gradient / dense (A^T A) x - A^T y", case.name, ratio, goal)


def mri_gradients(cases: list[Case], rounds: int) -> Iterator[Row]:
    """The gradient of an image's data fidelity against the host's, which has A^T y in it."""
    for case in cases:
        x, y, physics = case.batch_of()
        host = dinv.physics.MRI(physics.mask, (2, *case.size), device=case.device)
        known = dj.NormalL2().given(physics.A_adjoint(y))
        gradient = {
            "ours": lambda x: known.grad(x, y, physics),
            "host": lambda x: dinv.optim.L2().grad(x, y, host),
        }
        functions = {name: lambda f=f: f(x) for name, f in gradient.items()}
        functions |= {f"{name}, both": _derivative(f, x) for name, f in gradient.items()}
        times = in_turns(functions, rounds)
        ratio = times.ratio("ours", "host")
        yield Row("MRI gradient / host's L2.grad", case.name, ratio, 0.35)
        ratio = times.ratio("ours, both", "host, both")
        yield Row("the same, forward and backward", case.name, ratio)


def checkpoints(case: Case, rounds: int) -> Iterator[Row]:
    """Memory and time of recomputed iterations."""
    peaks = {}
    for k in (5, 20):
        for checkpoint in (False, True):
            model = case.model(jitter=0.1, max_iter=k, checkpoint=checkpoint)
            peaks[k, checkpoint] = peak_memory(case.step(model))
    for checkpoint, name in ((True, "checkpoint=True"), (False, "without")):
        ratio = peaks[20, checkpoint] / peaks[5, checkpoint]
        goal = 1.1 if checkpoint else None
        what = f"{name}: live peak at K=20 / K=5"
        yield Row(what, case.name, Ratio(ratio, ratio, ratio, 1), goal)
    functions = {
        name: case.step(case.model(jitter=0.1, checkpoint=name == "checkpoint"))
        for name in ("checkpoint", "plain")
    }
    ratio = in_turns(functions, rounds).ratio("checkpoint", "plain")
    yield Row("checkpoint=True: time / without, K=5", case.name, ratio, 1.4)


def compiled(case: Case, rounds: int) -> Iterator[Row]:
    """The network through the compiler of torch; its first call takes half a minute."""
    model = case.model()
    model.prior[0].network.compile()
    functions = {"plain": case.step(case.model()), "compiled": case.step(model)}
    ratio = in_turns(functions, rounds).ratio("compiled", "plain")
    yield Row("MSE step, compiled network / default", case.name, ratio)


def half_precision(case: Case, rounds: int) -> Iterator[Row]:
    """An attack in bfloat16 inside training in float32."""
    attacks = {
        dtype: dj.FrankWolfeAttack(BALL, steps=3, keep="last", autocast=dtype)
        for dtype in (None, torch.bfloat16)
    }
    functions = {
        str(dtype): case.step(case.model().to(memory_format=torch.channels_last), attack)
        for dtype, attack in attacks.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*has no units for.*")
        ratio = in_turns(functions, rounds).ratio("torch.bfloat16", "None")
    yield Row("AT, attack in bfloat16 / in float32", case.name, ratio, 1 / 2.3)


#: Steps in an epoch of the trainer.
EPOCH = 50


def _plain(case: Case, jitter: float = 0.0, steps: int = 0) -> Callable[[], None]:
    x, y, _ = case.batch_of()
    return training_step(case.plain_model(jitter), x, y, steps)


def _lean(case: Case, model: nn.Module) -> Callable[[], None]:
    """A training step of one of our models without a trainer."""
    x, y, physics = case.batch_of()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad()
        (model(y, physics) - x).square().mean().backward()
        optimizer.step()

    return step


def _trainer_epoch(case: Case, prebatched: bool) -> Callable[[], None]:
    """An epoch of the trainer, without metrics and progress bar."""
    x, y, physics = case.batch_of()
    samples = TensorDataset(x=x.repeat(EPOCH, 1), y=y.repeat(EPOCH, 1), use_dict_output=True)
    loader = DataLoader(samples, batch_size=case.batch, shuffle=True)
    if prebatched:
        # A data set of tensors can be asked for all samples of a batch at once
        batches = BatchSampler(RandomSampler(samples), case.batch, drop_last=False)
        loader = DataLoader(samples, batch_size=None, sampler=batches)
    options = {"train_dataloader": loader, "epochs": 1, "show_progress_bar": False}
    trainer = case.trainer(case.model(), physics, metrics=[], **options)
    return trainer.train


def _derivative(function: Callable, x: torch.Tensor) -> Callable[[], torch.Tensor]:
    x, v = x.clone().requires_grad_(), torch.randn_like(x)
    return lambda: torch.autograd.grad(function(x), x, v)
