r"""
How far attacks get on the package's demo networks, and what that costs: a fixed number of steps
against the search that goes on until it has converged.

``python examples/benchmarks/convergence.py`` prints the tables of the page on attacks, in about ten
minutes on one core; ``--reference`` adds what four searches of 1000 steps each find, the worst for
each sample, in another hour. Data, physics and radii are those of the demos of the robustness
report and of seismic deconvolution; the decibels are those of the squared error, peak 1 for brains
and 2 for sections. ``--project`` says what the search would take on 100 slices of the paper's size,
from the time of a gradient there, and how well that works at a small size.
"""

import argparse
import sys
import time

import deepinv as dinv
import torch

import deepinv_jitter as dj
from deepinv_jitter.evaluation.tables import markdown
from deepinv_jitter.models.demo import SIZES, TRAININGS

NETWORKS = [f"{problem}_{training}" for problem in SIZES for training in TRAININGS]
FIXED = (20, 100, 400)
COLUMNS = (
    "gradients",
    "seconds of a core, each sample",
    "of the most excess error found",
    "converged",
)


def data(name: str, samples: int, size: int):
    """Truths, their measurements, the physics, the radius in norms of the noise, and the peak."""
    shape = (size, size)
    rng = torch.Generator().manual_seed(1)
    if "seismic" in name:
        sections = dj.ReflectivityDataset(samples, img_size=shape, seed=3)
        x = torch.stack([section["x"] for section in sections])
        noise = dinv.physics.GaussianNoise(0.01, rng=rng)
        physics = dj.SeismicConvolution(noise_model=noise)
        return x, physics(x), physics, 0.5, 2.0
    shape = (size * 5 // 3, size * 4 // 3)
    slices = dj.BrainSliceDataset("test", img_size=shape, resolution=96 / size)
    picked = torch.linspace(0, len(slices) - 1, samples + 2)[1:-1]
    x = torch.stack([slices[int(i)]["x"] for i in picked])
    mask = dj.FastMRIMaskGenerator(shape, acceleration=4, seed=1).step(1)["mask"]
    noise = dinv.physics.GaussianNoise(0.05, rng=rng)
    physics = dj.SingleCoilMRI(mask, img_size=shape, noise_model=noise)
    return x, physics(x), physics, 1.0, 1.0


def references(ball: dj.L2Ball, steps: int = 1000) -> dj.WorstCase:
    options = {"steps": steps, "checks": False}
    return dj.WorstCase(
        [
            dj.APGDAttack(ball, **options),
            dj.MomentumAttack(ball, **options),
            dj.MomentumAttack(ball, start="random", seed=11, **options),
            dj.MomentumAttack(ball, start="random", seed=12, widen=3, **options),
        ]
    )


def attacks(ball: dj.L2Ball, reference: bool) -> dict[str, dj.Attack]:
    fixed = {f"{n} steps": dj.APGDAttack(ball, steps=n, checks=False) for n in FIXED}
    converged = {"standard": dj.ConvergedAttack.standard(ball, checks=False)}
    return fixed | converged | ({"reference": references(ball)} if reference else {})


def measured(name: str, samples: int, size: int, reference: bool) -> dict[str, dict]:
    """For each attack decibels, excess error, gradients, whether it has converged, and seconds."""
    model = dj.demo_network(name)
    x, y, physics, radius, peak = data(name, samples, size)

    def decibels(loss: torch.Tensor) -> torch.Tensor:
        return 10 * torch.log10(x[0, 0].numel() * peak**2 / loss)

    rows = {}
    ball = dj.L2Ball(radius, relative_to="noise")
    for label, attack in attacks(ball, reference).items():
        start = time.process_time()
        result = attack.run(model, x, y, physics)
        rows["clean"] = {"dB": decibels(result.loss_clean)}
        rows[label] = {
            "dB": decibels(result.loss),
            "excess": result.loss - result.loss_clean,
            "gradients": torch.zeros(samples) + result.n_grad,
            "converged": ~result.flags["not_converged"],
            "seconds": torch.tensor([time.process_time() - start]),
        }
    return rows


def table_of_networks(results: dict[str, dict[str, dict]]) -> str:
    """What each attack leaves of each network."""
    labels = list(next(iter(results.values())))
    lines = [["network, dB", *labels]]
    for name, rows in results.items():
        lines.append([f"`{name}`", *(f"{rows[k]['dB'].mean():.2f}" for k in labels)])
    return markdown(lines)


def table_of_attacks(results: dict[str, dict[str, dict]]) -> str:
    """What each attack costs, and what it finds of the most that any of them found."""
    labels = [k for k in next(iter(results.values())) if k != "clean"]

    def every(label: str, key: str) -> torch.Tensor:
        return torch.cat([rows[label][key] for rows in results.values()]).double()

    most = torch.stack([every(label, "excess") for label in labels]).amax(0)
    lines = [["attack", *COLUMNS]]
    for label in labels:
        share, spent, done = (
            every(label, "excess") / most,
            every(label, "gradients"),
            every(label, "converged"),
        )
        lines.append(
            [
                label,
                f"{spent.mean():.0f}, at most {spent.max():.0f}",
                f"{every(label, 'seconds').sum() / len(spent):.1f}",
                f"{share.mean():.3f}, at least {share.min():.2f}",
                f"{int(done.sum())} of {len(done)}",
            ]
        )
    return markdown(lines)


def of_size(size: int, iterations: int, depth: int, width: int, samples: int):
    """An untrained network for MRI with truths and measurements of a size."""
    torch.manual_seed(0)
    denoiser = dj.UnrolledDnCNN(2, depth=depth, width=width, residual=True)
    model = dj.UnfoldedPGD(denoiser, max_iter=iterations).eval()
    x, y, physics, *_ = data("mri", samples, size)
    return model, x, y, physics


def gradient_seconds(model, x, y, physics) -> float:
    """Of one sample: what more steps of an attack take, less what fewer take."""

    def seconds(steps: int) -> float:
        attack = dj.FrankWolfeAttack(dj.L2Ball(1.0), steps=steps, checks=False)
        start = time.process_time()
        attack(model, x, y, physics)
        return time.process_time() - start

    seconds(1)
    return (seconds(2) - seconds(1)) / len(x)


def projection(gradients: float) -> str:
    """Seconds of a core that the search takes, a small one measured beside its projection."""
    model, x, y, physics = of_size(48, 5, 4, 16, samples=4)
    one = gradient_seconds(model, x, y, physics)
    attack = dj.ConvergedAttack.standard(dj.L2Ball(1.0, relative_to="noise"), checks=False)
    start = time.process_time()
    spent = (torch.zeros(len(x)) + attack.run(model, x, y, physics).n_grad).sum().item()
    taken = time.process_time() - start
    small = ["80 x 64, K=5, 4 slices", f"{one:.3g}", f"{spent:.0f}", f"{spent * one:.0f}"]
    one = gradient_seconds(*of_size(240, 10, 8, 64, samples=1))
    large = ["400 x 320, K=10, 100 slices", f"{one:.3g}", f"{100 * gradients:.0f}"]
    head = ["search", "seconds a gradient", "gradients", "projected seconds", "measured"]
    return markdown([head, [*small, f"{taken:.0f}"], [*large, f"{100 * gradients * one:.0f}", ""]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--samples", type=int, default=3, help="for each network")
    parser.add_argument("--size", type=int, default=96, help="of the images")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("--project", action="store_true", help="to 100 slices of the paper's size")
    args = parser.parse_args()
    results = {}
    for name in args.networks:
        results[name] = measured(name, args.samples, args.size, args.reference)
        print(name, file=sys.stderr)
    print(f"{table_of_networks(results)}\n\n{table_of_attacks(results)}")
    if args.project:
        spent = torch.cat([rows["standard"]["gradients"] for rows in results.values()])
        print(f"\n{projection(spent.mean().item())}")


if __name__ == "__main__":
    main()
