r"""
Swap the denoiser
=================

Whatever deepinv can use as a prior can be unrolled and jittered: here the same proximal gradient
network, eq. (12) of the paper, for 4x accelerated brain MRI, with five priors: four of deepinv's
denoisers and total variation, of which only the weight is learned. Nothing else changes.
"""

# %%
# Data and physics
# ----------------
# Small slices, so that each training takes seconds.

import time

import deepinv as dinv
import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

import deepinv_jitter as dj

SIZE = (48, 48)
brain = dict(img_size=SIZE, resolution=4)
train = dj.BrainSliceDataset("train", contrast=True, **brain)
test = dj.BrainSliceDataset("test", spacing=2, **brain)


def acquisition(seed):
    noise = dinv.physics.GaussianNoise(0.03, rng=torch.Generator().manual_seed(seed))
    physics = dj.SingleCoilMRI(img_size=SIZE, noise_model=noise)
    return physics, dj.FastMRIMaskGenerator(SIZE, acceleration=4, seed=seed)


# %%
# Five priors
# -----------
# Freshly initialised. ``pretrained="download"`` starts from deepinv's own weights, which are for
# images of one or three channels; ``pretrained="weights.pt"`` takes a file. See
# `deepinv's list <https://deepinv.github.io/deepinv/user_guide/reconstruction/denoisers.html>`_.

channels = dict(in_channels=2, out_channels=2)
priors = {
    "DnCNN": dinv.models.DnCNN(**channels, depth=4, nf=24, pretrained=None),
    "UNet": dinv.models.UNet(
        **channels, scales=3, channels_per_scale=[8, 16, 32], batch_norm=False
    ),
    "DRUNet": dinv.models.DRUNet(**channels, nc=[8, 16, 32, 64], nb=1, pretrained=None),
    "wavelets": dinv.models.WaveletDenoiser(non_linearity="soft", wv="db4", level=2),
    "total variation": dinv.optim.TVPrior(n_it_max=5),
}


def unrolled(prior):
    return dj.UnfoldedPGD(
        prior,
        stepsize=1.0,
        max_iter=3,
        jitter=0.05,  # the one argument: noise on every gradient step of training
        sigma_denoiser=0.05,  # the level that a denoiser is told to remove
        lambda_reg=0.02,  # the weight of a prior that has one
        trainable_params=["stepsize", "sigma_denoiser", "lambda_reg"],
    )


# %%
# Training
# --------
# Every epoch measures the slices anew, with other masks and other noise.


def fit(model, epochs=8):
    torch.manual_seed(0)
    physics, masks = acquisition(seed=0)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return dj.JitterTrainer(
        model,
        physics,
        optimizer,
        DataLoader(train, batch_size=8, shuffle=True),
        epochs=epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        online_measurements=True,
        physics_generator=masks,
        grad_clip=1.0,
        device="cpu",
        save_path=None,
        verbose=False,
        show_progress_bar=False,
    ).train()


torch.manual_seed(0)
models = {}
for name, prior in priors.items():
    start = time.perf_counter()
    models[name] = fit(unrolled(prior)).eval()
    count = sum(p.numel() for p in models[name].parameters())
    print(f"{name:16s} {count:7d} weights {time.perf_counter() - start:5.0f} s")

# %%
# Clean and under attack
# ----------------------
# The same test measurements for all. The attack may change measured entries by half the norm of
# the noise that is there anyway, and finds the worst change for each network.

physics, masks = acquisition(seed=1)
x = torch.stack([sample["x"] for sample in test])
physics.update(**masks.step(len(x)))
y = physics(x)
attack = dj.PowerAttack(dj.L2Ball(0.5, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)

outputs = {"zero-filled": physics.A_adjoint(y)}
print(f"\n{'PSNR (dB)':16s}{'clean':>8s}{'attacked':>10s}")
for name, model in models.items():
    delta = attack(model, x, y, physics)
    with torch.no_grad():
        outputs[name] = model(y, physics)
        attacked = model(y + delta, physics)
    clean = psnr(outputs[name], x).mean()
    print(f"{name:16s}{clean:8.2f}{psnr(attacked, x).mean():10.2f}")

# %%
# One slice
# ---------

images = {"truth": x} | outputs
titles = ["truth"] + [
    f"{name}\n{psnr(image[3:4], x[3:4]).item():.1f} dB"
    for name, image in outputs.items()
]
figure, axes = plt.subplots(1, len(images), figsize=(14, 2.7), layout="constrained")
for ax, title, image in zip(axes, titles, images.values()):
    ax.imshow(image[3].norm(dim=0), cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=10)
    ax.set_axis_off()
plt.show()
