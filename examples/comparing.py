r"""What the comparisons on the command line share: a plan, trainings, one table, one picture."""

import argparse
import copy
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import deepinv as dinv
import matplotlib
import torch
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset
from tqdm import tqdm

import deepinv_jitter as dj

BATCH, EPOCHS = 2, 5


@dataclass(kw_only=True)
class Comparison:
    """Three trainings of one network on one problem, and what they are judged on."""

    networks: str  # of dj.demo_network, that the trainings go on from
    train: Dataset
    test: Dataset
    physics: dinv.physics.Physics
    masks: dinv.physics.generator.PhysicsGenerator | None = None
    jitter: float  # relative to the largest magnitude of an iterate
    sigma: float  # of the noise on the measurements
    radius: float = 0.5  # of the attacks in training, in norms of the measurement noise
    radii: tuple[float, ...] = (0.5, 1.0)
    schemes: dict[str, tuple] = field(init=False)

    def __post_init__(self):
        noise = dj.GaussianJitter(self.jitter, "relative")
        ball = dj.L2Ball(self.radius, relative_to="noise")
        attack = dj.FrankWolfeAttack(ball, steps=1, keep="last")
        robust = {"trainer": dj.RobustTrainer, "attack": attack, "sigma": self.sigma}
        self.schemes = {
            "MSE training": ("mse", None, {}),
            "SPGD jittering": ("jittered", noise, {}),
            "noise and attacks": ("robust", None, robust),
        }


def parser(description: str, examples: str, size: tuple[int, int], test: int):
    """The arguments that all comparisons have."""
    arguments = argparse.ArgumentParser(
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--size", type=int, nargs=2, default=size, help="pixels: height, width")
    arguments.add_argument(
        "--steps", type=positive, default=300, help="of each of the three trainings"
    )
    arguments.add_argument("--test", type=positive, default=test, help="samples that are attacked")
    arguments.add_argument("--attacks", choices=("standard", "quick"), default="standard")
    arguments.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments.add_argument("--out", type=Path, default=Path("results"))
    return arguments


def positive(text: str) -> int:
    """A whole number of things."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def split(samples: Dataset) -> tuple[Subset, Subset]:
    """Four fifths to train on and the rest to test on; neighbours stay together."""
    cut = int(0.8 * len(samples))
    if cut < 1:
        raise SystemExit(f"--data must give at least 2 samples of --size, got {len(samples)}.")
    return Subset(samples, range(cut)), Subset(samples, range(cut, len(samples)))


def run(comparison: Comparison, args: argparse.Namespace) -> None:
    """Say what will be done, do it, and write the report."""
    matplotlib.use("Agg")
    args.out.mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=args.out).close()  # an error now, not after the first training
    args.steps -= args.steps % min(EPOCHS, args.steps)  # in epochs of one length
    start = time.perf_counter()
    test = Subset(comparison.test, spread(len(comparison.test), args.test))
    announce(comparison, args, len(test))
    models = {}
    for name, (network, noise, options) in comparison.schemes.items():
        model = dj.demo_network(f"{comparison.networks}_{network}", jitter=noise).to(args.device)
        models[name] = trained(name, model, comparison, args, options)
        torch.save(models[name].state_dict(), args.out / f"{network}.pt")
    result = dj.evaluate_robustness(
        models,
        DataLoader(test, batch_size=4),
        comparison.physics,
        physics_generator=comparison.masks,
        epsilons=comparison.radii,
        relative_to="noise",
        attacks=args.attacks,
        device=args.device,
    )
    print(f"\n{result.table(compare_to='MSE training')}\n")
    result.to_csv(args.out / "comparison.csv")
    result.images(samples=1, path=args.out / "images.png")
    result.plot(args.out / "curves.pdf")
    print(
        f"{args.out}: images.png, curves.pdf, comparison.csv with every sample, and the weights, "
        f"after {(time.perf_counter() - start) / 60:.1f} min"
    )


def announce(comparison: Comparison, args: argparse.Namespace, samples: int) -> None:
    """The plan, with the time that a measured step of training promises."""
    step = seconds_of_a_step(comparison, args.device)
    print(
        f"Plan: {len(comparison.schemes)} networks of the package are trained on, {args.steps} "
        f"steps each on {len(comparison.train)} samples of {args.size[0]} x {args.size[1]}\n"
        f"({', '.join(comparison.schemes)}), about {3.3 * args.steps * step / 60:.1f} min on "
        f"{args.device}; then {samples} other samples are attacked."
    )
    if torch.device(args.device).type != "cpu":
        ratio = seconds_of_a_step(comparison, "cpu") / step
        print(f"A step takes {ratio:.1f} times as long on the CPU.")


def seconds_of_a_step(comparison: Comparison, device: str) -> float:
    """Of MSE training, the second one: the first allocates."""
    model = dj.demo_network(f"{comparison.networks}_mse").to(device)
    physics = copy.deepcopy(comparison.physics).to(device)
    samples = [comparison.train[i % len(comparison.train)]["x"] for i in range(BATCH)]
    x = torch.stack(samples).to(device)
    params = comparison.masks.step(BATCH) if comparison.masks else {}
    y = physics(x, **{name: value.to(device) for name, value in params.items()})
    for _ in range(2):
        start = time.perf_counter()
        (model(y, physics) - x).square().mean().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
    return time.perf_counter() - start


def trained(name: str, model, comparison: Comparison, args: argparse.Namespace, options: dict):
    """A training with a progress bar."""
    torch.manual_seed(0)
    epochs = min(EPOCHS, args.steps)
    sampler = RandomSampler(comparison.train, num_samples=BATCH * args.steps // epochs)
    loader = DataLoader(comparison.train, BATCH, sampler=sampler)
    with tqdm(total=args.steps, desc=name, unit="step") as bar:

        def count(module, arguments):
            if module.training:
                bar.update()

        hook = model.register_forward_pre_hook(count)
        dj.fit(
            model,
            comparison.physics,
            loader,
            epochs=epochs,
            lr=5e-4,
            physics_generator=comparison.masks,
            ema=0.99,
            **options,
        )
        hook.remove()
    return model


def spread(length: int, count: int) -> list[int]:
    """At most so many of the indices, evenly spread."""
    return torch.linspace(0, length - 1, min(count, length)).round().int().tolist()
