r"""
Brain MRI
=========

Single-coil MRI of real brain anatomy, 4x accelerated, by unrolled proximal gradient descent. One
network is trained with the mean squared error (MSE), one with SPGD jittering, which adds noise to
every gradient step in training and none in evaluation. Both are then judged on slices they never
saw: clean, and with more noise than in training.

Each starts from a network of :func:`deepinv_jitter.demo_network`, after some minutes of the same
training. The command line ``examples/mri/compare.py`` does more: attacks, other sizes, fastMRI
files, a GPU.
"""

# %%
# Slices, masks and noise
# -----------------------
# Axial slices of the MNI152 brain, train and test at least 5 mm apart; masks of the fastMRI
# challenge, a new one for every image.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

SIZE = (160, 128)  # pixels of 1 mm
train = dj.BrainSliceDataset("train", img_size=SIZE, spacing=2, contrast=True)
test = dj.BrainSliceDataset("test", img_size=SIZE, spacing=3)


def acquisition(seed):
    noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(seed))
    physics = dj.SingleCoilMRI(img_size=SIZE, noise_model=noise)
    return physics, dj.FastMRIMaskGenerator(SIZE, acceleration=4, seed=seed)


# %%
# Two trainings
# -------------
# They share the batches, the masks and the measurement noise: ``jitter`` is all that differs.


def trained(start, jitter=None):
    torch.manual_seed(0)
    model = dj.demo_network(start, jitter=jitter)
    physics, masks = acquisition(seed=0)
    return dj.fit(model, physics, train, epochs=2, lr=5e-4, physics_generator=masks)


noise = dj.GaussianJitter(0.05, "relative")  # to the largest magnitude of an iterate
models = {"MSE": trained("mri_mse"), "SPGD jittering": trained("mri_jittered", noise)}

# %%
# Clean and noisy measurements
# ----------------------------
# Measured once, so that both networks see the same masks and noise. Total variation is the
# reference.

physics, masks = acquisition(seed=1)
x = torch.stack([sample["x"] for sample in test])
physics.update(**masks.step(len(x)))
y = physics(x)
extra = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)) * physics.mask
measurements = {"clean": y, "noise +0.1": y + 0.1 * extra}


def total_variation(y, physics):
    algorithm = dinv.optim.FISTA(
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.TVPrior(n_it_max=20),
        lambda_reg=0.03,
        stepsize=1.0,
        max_iter=100,
    )
    return algorithm(y, physics)


methods = {
    "zero-filled": lambda y, physics: physics.A_adjoint(y),
    "total variation": total_variation,
} | models
psnr = dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)

figure, axes = plt.subplots(2, 5, figsize=(10, 5.8), layout="constrained")
for row, (column, y) in zip(axes, measurements.items()):
    row[0].imshow(x[3].norm(dim=0), cmap="gray", vmin=0, vmax=1)
    row[0].set_title(f"truth\n({column})", fontsize=15)
    for ax, (name, method) in zip(row[1:], methods.items()):
        with torch.no_grad():
            image = method(y, physics)
        print(f"{column:12s}{name:18s}{psnr(image, x).mean():6.2f} dB")
        ax.imshow(image[3].norm(dim=0), cmap="gray", vmin=0, vmax=1)
        ax.set_title(f"{name}\n{psnr(image[3:4], x[3:4]).item():.2f} dB", fontsize=15)
for ax in axes.flat:
    ax.set_axis_off()
plt.show()
