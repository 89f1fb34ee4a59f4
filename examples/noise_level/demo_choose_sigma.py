r"""
Choosing the noise level
========================

SGD jittering has one number to choose, the level :math:`\sigma` of the noise: too little does
nothing, too much costs accuracy. The paper reads it off a curve (section 8.2). Here the same
unrolled network, for the deconvolution of small seismic sections, is trained with a few levels;
each is judged on *validation* data, clean and under attack; :func:`deepinv_jitter.choose_sigma`
picks the most robust level that costs no accuracy, and the test data see that one alone.
"""

# %%
# Settings
# --------

import argparse
import time
from pathlib import Path

import deepinv as dinv
import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

import deepinv_jitter as dj

parser = argparse.ArgumentParser(description="Choosing the noise level")
parser.add_argument("--epochs", type=int, default=8, help="of each training")
parser.add_argument("--out", type=Path, default=Path("results"))
args = parser.parse_args()

SIZE, NOISE, RADIUS = (48, 32), 0.01, 0.5
LEVELS = (0.0, 0.1, 0.3, 1.0, 3.0)

start_time = time.perf_counter()
args.out.mkdir(parents=True, exist_ok=True)

# %%
# Sections, wavelet and network
# -----------------------------
# Three sets of sections from different seeds. The level is relative to the largest magnitude of
# each iterate, so that it has no unit.

wavelet = dj.ricker(25, a=2.0)


def physics():
    noise = dinv.physics.GaussianNoise(NOISE, rng=torch.Generator().manual_seed(0))
    return dj.SeismicConvolution(wavelet, normalize=False, noise_model=noise)


def sections(count, seed):
    return dj.ReflectivityDataset(
        count, img_size=SIZE, seed=seed, thickness=6, fold=4, throw=10
    )


train, validation, test = sections(64, 0), sections(16, 1), sections(16, 2)
gain = physics().compute_sqnorm(torch.ones(1, 1, *SIZE), verbose=False).item()


def trained(sigma):
    torch.manual_seed(0)
    network = dj.UnrolledDnCNN(1, depth=4, width=12, condition_channels=1)
    model = dj.UnfoldedGD(
        dj.GradientPrior(network, reads_y=True),
        stepsize=1 / gain,
        lambda_reg=gain,
        max_iter=4,
        positive_stepsize=True,
        init=lambda y, physics: y,
        jitter=dj.GaussianJitter(sigma, "relative"),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
    trainer = dj.JitterTrainer(
        model,
        physics(),
        optimizer,
        DataLoader(train, batch_size=4, shuffle=True),
        epochs=args.epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs),
        online_measurements=True,
        grad_clip=1.0,
        device="cpu",
        save_path=None,
        verbose=False,
        show_progress_bar=False,
    )
    return trainer.train().eval()


def report(model, data):
    return dj.evaluate_robustness(
        model,
        DataLoader(data, batch_size=16),
        physics(),
        attacks="quick",
        epsilons=[RADIUS * NOISE * (SIZE[0] * SIZE[1]) ** 0.5],
        metrics={"PSNR": dinv.metric.PSNR(max_pixel=1.0)},
        draws=1,
        verbose=False,
    )


# %%
# The curve
# ---------

models, clean, attacked = {}, {}, {}
print("PSNR (dB) on validation data")
for sigma in LEVELS:
    models[sigma] = trained(sigma)
    values = report(models[sigma], validation).values
    clean[sigma] = values["clean"]["PSNR"]
    attacked[sigma] = next(v["PSNR"] for k, v in values.items() if "worst" in k)
    print(
        f"sigma {sigma:<4g} clean {clean[sigma].mean():5.2f}  "
        f"attacked {attacked[sigma].mean():5.2f}"
    )

# %%
# The choice
# ----------
# The smallest level, no noise, is the accuracy to be kept; a tenth of a decibel may go.

sigma = dj.choose_sigma(clean, attacked, tolerance=0.1)
print(f"\nchosen: sigma = {sigma:g}; on test data:")
print(report(models[sigma], test).table())

# %%
# Points further up are more robust, points further to the right more accurate; what lies left of
# the dashed line costs too much accuracy.

figure, ax = plt.subplots(figsize=(5.2, 4.0), layout="constrained")
x = [clean[s].mean().item() for s in LEVELS]
y = [attacked[s].mean().item() for s in LEVELS]
ax.plot(x, y, "o-", color="#0072B2")
for s, a, b in zip(LEVELS, x, y):
    ax.annotate(f"$\\sigma$ = {s:g}", (a, b), xytext=(5, 5), textcoords="offset points")
ax.plot(
    clean[sigma].mean(),
    attacked[sigma].mean(),
    "o",
    ms=13,
    mfc="none",
    mec="#D55E00",
    mew=2,
)
ax.axvline(x[0] - 0.1, color="0.5", ls="--", lw=1)
ax.set(
    xlabel="clean, PSNR [dB]",
    ylabel="under attack, PSNR [dB]",
    title="16 validation sections, one training each",
)
ax.margins(0.15)
ax.spines[["top", "right"]].set_visible(False)
figure.savefig(args.out / "choose_sigma.png", dpi=130)
print(f"\nFigure in {args.out}, {time.perf_counter() - start_time:.0f} s in all")
