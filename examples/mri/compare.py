r"""
SGD and SPGD jittering on brain MRI
===================================

Single-coil MRI, 4x accelerated, of real brain anatomy. Two unrolled networks, gradient descent (GD)
and proximal gradient descent (PGD), are each trained twice: with the mean squared error (MSE), and
with jittering, that is, with noise on every gradient step in training and none in evaluation. All
are then judged on slices they never saw, on the same measurements: clean, with more noise on the
measured part of k-space than in training, and on coronal slices, an orientation that was not in the
training data.

The default size takes a few minutes on two CPU cores. Networks of this kind need longer than that
to train from nothing, so each training goes on from a network that comes with the package,
trained in the same way, with or without jittering, by ``examples/weights/train.py``.
"""

# %%
# Settings
# --------
# ``--data`` takes a folder of fastMRI single-coil files instead of the brain; the brain is then
# what the networks were not trained on.

import argparse
import csv
import time
from functools import partial
from pathlib import Path

import deepinv as dinv
import matplotlib.pyplot as plt
import torch
from torch.utils.data import Subset

import deepinv_jitter as dj

parser = argparse.ArgumentParser(description="SGD and SPGD jittering on brain MRI")
parser.add_argument("--device", default="cpu")
parser.add_argument("--epochs", type=int, default=3, help="of each of the four trainings")
parser.add_argument("--size", type=int, default=96, help="pixels along each side")
parser.add_argument("--data", help="folder of fastMRI single-coil .h5 files")
parser.add_argument("--out", type=Path, default=Path("results"))
args = parser.parse_args()

NOISE = 0.05  # standard deviation of the measurement noise, images are in [0, 1]
MORE_NOISE = (0.05, 0.1)  # added to it on the measured entries, average-case robustness
JITTER = dj.GaussianJitter(0.05, "relative")  # to the largest magnitude of an iterate

start_time = time.perf_counter()
args.out.mkdir(parents=True, exist_ok=True)

# %%
# Data
# ----
# Axial slices of the MNI152 brain, train and test at least 5 mm apart, and coronal slices for the
# shift.

size = (args.size, args.size)


def brain(split, plane="axial", **kwargs):
    return dj.BrainSliceDataset(
        split, plane=plane, img_size=size, resolution=192 / args.size, **kwargs
    )


if args.data:
    slices = dj.fastmri_slices(args.data, img_size=size)
    cut = int(0.8 * len(slices))  # files are in order: the last ones are kept for the test
    train, test = Subset(slices, range(cut)), Subset(slices, range(cut, len(slices)))
    shifted, shift_name = brain("test"), "brain"
else:
    train = brain("train", contrast=True, copies=2)
    test, shifted, shift_name = brain("test"), brain("test", "coronal"), "coronal"

test_sets = {
    name: torch.stack([data[i]["x"] for i in torch.linspace(0, len(data) - 1, 12).int()])
    for name, data in {"test": test, "shift": shifted}.items()
}

# %%
# Physics
# -------
# Masks of the fastMRI challenge, a new one for every image. Training data are measured anew in
# every epoch; the test data are measured once, so that all methods see the same masks and noise.


def acquisition(seed):
    rng = torch.Generator(args.device).manual_seed(seed)
    noise = dinv.physics.GaussianNoise(NOISE, rng=rng)
    physics = dj.SingleCoilMRI(img_size=size, noise_model=noise, device=args.device)
    return physics, dj.FastMRIMaskGenerator(size, acceleration=4, seed=seed, device=args.device)


def measure(x, more_noise=0.0):
    physics, masks = acquisition(seed=1)
    x = x.to(args.device)
    mask = masks.step(len(x))["mask"]
    y = physics(x, mask=mask)
    extra = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y)
    return x, y + more_noise * extra * mask, physics


columns = {
    "clean": measure(test_sets["test"]),
    **{f"noise +{s}": measure(test_sets["test"], s) for s in MORE_NOISE},
    shift_name: measure(test_sets["shift"]),
}

# %%
# Models and training
# -------------------
# The two networks of a pair share their batches, masks and measurement noise: the jitter is all
# that differs. One argument makes a model a jittered one.


def trained(model):
    torch.manual_seed(0)
    physics, masks = acquisition(seed=0)
    options = {"physics_generator": masks, "freq_update_progress_bar": 5}
    return dj.fit(model, physics, train, epochs=args.epochs, lr=5e-4, verbose=True, **options)


methods = {
    "GD, MSE": ("mri_gd", None),
    "GD, SGD jittering": ("mri_gd_jittered", JITTER),
    "PGD, MSE": ("mri_pgd", None),
    "PGD, SPGD jittering": ("mri_pgd_jittered", JITTER),
}


def slug(name):
    return name.lower().replace(",", "").replace(" ", "_")


models = {}
for name, (start, jitter) in methods.items():
    print(f"\n{name}")
    models[name] = trained(dj.demo_network(start, jitter=jitter).to(args.device))
    torch.save(models[name].state_dict(), args.out / f"{slug(name)}.pt")

# %%
# Reference rows: the zero-filled reconstruction :math:`A^\top y`, and total variation with the best
# weight of a few on training slices.


def total_variation(y, physics, weight):
    # built anew for every measurement: deepinv's TV denoiser starts from where its last call ended
    algorithm = dinv.optim.FISTA(
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.TVPrior(n_it_max=20),
        lambda_reg=weight,
        stepsize=1.0,
        max_iter=100,
    )
    return algorithm(y, physics)


psnr = dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)
ssim = dinv.metric.SSIM(complex_abs=True, max_pixel=1.0)

few = torch.stack([train[i]["x"] for i in torch.linspace(0, len(train) - 1, 4).int()])
x, y, physics = measure(few)
weight = max((0.02, 0.03, 0.045), key=lambda w: psnr(total_variation(y, physics, w), x).mean())
references = {
    "zero-filled": lambda y, physics: physics.A_adjoint(y),
    f"TV, weight {weight}": partial(total_variation, weight=weight),
}

# %%
# Results
# -------

rows, pictures = [], {}
for name, method in (references | models).items():
    row = {"method": name}
    for column, (x, y, physics) in columns.items():
        with torch.no_grad():
            x_net = method(y, physics)
        row[f"{column} PSNR"] = psnr(x_net, x).mean().item()
        row[f"{column} SSIM"] = ssim(x_net, x).mean().item()
        pictures[name, column] = x_net[len(x_net) // 2].norm(dim=0).cpu()
    rows.append(row)

print(f"\nPSNR (dB) / SSIM, mean of {len(test_sets['test'])} slices, one training each")
print(f"{'':22s}" + "".join(f"{column:>16s}" for column in columns))
for row in rows:
    cells = [f"{row[f'{c} PSNR']:6.2f} / {row[f'{c} SSIM']:.3f}" for c in columns]
    print(f"{row['method']:22s}" + "".join(f"{cell:>16s}" for cell in cells))
with open(args.out / "mri_jittering.csv", "w", newline="") as file:
    writer = csv.DictWriter(file, rows[0])
    writer.writeheader()
    writer.writerows(rows)

# %%
# One slice, clean and under the stronger noise. All images share one grey scale, all error maps
# another.

shown = ["clean", f"noise +{MORE_NOISE[-1]}"]
names = [*references, *models]
figure, axes = plt.subplots(
    2 * len(shown), len(names) + 1, figsize=(2 * len(names) + 2.2, 4.3 * len(shown))
)
for k, column in enumerate(shown):
    truth = columns[column][0][len(test_sets["test"]) // 2].norm(dim=0).cpu()
    images, errors = axes[2 * k], axes[2 * k + 1]
    images[0].imshow(truth, cmap="gray", vmin=0, vmax=1)
    images[0].set_title(f"truth\n({column})", fontsize=10)
    errors[0].text(0.5, 0.5, "error,\n0 to 0.25", ha="center", va="center", fontsize=10)
    for name, image, error in zip(names, images[1:], errors[1:]):
        picture = pictures[name, column]
        db = -10 * (picture - truth).square().mean().log10()
        image.imshow(picture, cmap="gray", vmin=0, vmax=1)
        image.set_title(f"{name}\n{db:.2f} dB", fontsize=10)
        error.imshow((picture - truth).abs(), cmap="inferno", vmin=0, vmax=0.25)
for ax in axes.flat:
    ax.set_axis_off()
figure.tight_layout(pad=0.4)
figure.savefig(args.out / "mri_jittering.png", dpi=110)
print(f"\nTable and figure in {args.out}, {time.perf_counter() - start_time:.0f} s in all")
