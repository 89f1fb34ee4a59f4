r"""
Swap the denoiser
=================

Whatever deepinv can use as a prior can be unrolled and jittered: here the same proximal gradient
network, eq. (12) of the paper, deblurs brain slices with five priors: four of deepinv's denoisers,
and total variation, of which only the weight is learned. Nothing else changes; DRUNet alone, the
deepest, needs a longer training.
"""

# %%
# Data and physics
# ----------------
# Small slices, so that each training takes seconds, blurred by a Gaussian, with a little noise.

import time

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

brain = dict(img_size=(48, 48), resolution=4)


def magnitude(split, **kwargs):
    slices = dj.BrainSliceDataset(split, **brain, **kwargs)
    return torch.stack([sample["x"][:1] for sample in slices])


train, test = magnitude("train", contrast=True), magnitude("test", spacing=2)


def camera(seed):
    return dinv.physics.Blur(
        dinv.physics.functional.gaussian_blur(sigma=(1.0, 1.0)),
        padding="reflect",
        noise_model=dinv.physics.GaussianNoise(0.03, rng=torch.Generator().manual_seed(seed)),
    )


# %%
# Five priors
# -----------
# Freshly initialised. In the sizes that deepinv publishes, DnCNN and DRUNet start from its weights
# with ``pretrained="download"``; ``pretrained="weights.pt"`` takes a file. See
# `deepinv's list <https://deepinv.github.io/deepinv/user_guide/reconstruction/denoisers.html>`_.

channels = dict(in_channels=1, out_channels=1)
priors = {
    "DnCNN": dinv.models.DnCNN(**channels, depth=4, nf=24, pretrained=None),
    "UNet": dinv.models.UNet(
        **channels, scales=3, channels_per_scale=[8, 16, 32], batch_norm=False
    ),
    "DRUNet": dinv.models.DRUNet(**channels, nc=[8, 8, 16, 16], nb=1, pretrained=None),
    "wavelets": dinv.models.WaveletDenoiser(non_linearity="soft", wv="db4", level=2),
    "total variation": dinv.optim.TVPrior(n_it_max=5),
}


def unrolled(prior):
    return dj.UnfoldedPGD(
        prior,
        stepsize=1.0,
        max_iter=3,
        jitter=0.02,  # the one argument: noise on every gradient step of training
        sigma_denoiser=0.05,  # the level that a denoiser is told to remove
        lambda_reg=0.02,  # the weight of a prior that has one
        trainable_params=["stepsize", "sigma_denoiser", "lambda_reg"],
    )


# %%
# Training
# --------
# Every epoch measures the slices anew, with other noise.


data = dinv.datasets.TensorDataset(x=train, use_dict_output=True)


def trained(model, epochs=15, lr=2e-3):
    torch.manual_seed(0)
    return dj.fit(model, camera(seed=0), data, epochs=epochs, lr=lr)


torch.manual_seed(0)
models = {}
for name, prior in priors.items():
    start = time.perf_counter()
    longer = {"epochs": 40, "lr": 5e-3} if name == "DRUNet" else {}
    models[name] = trained(unrolled(prior), **longer)
    count = sum(p.numel() for p in models[name].parameters())
    print(f"{name:16s} {count:7d} weights {time.perf_counter() - start:5.0f} s")

# %%
# Clean and under attack
# ----------------------
# The same test measurements for all. The attack may change them by half the norm of their noise,
# and finds the worst change for each network.

physics = camera(seed=1)
x, y = test, physics(test)
attack = dj.FrankWolfeAttack(dj.L2Ball(0.5, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR()

outputs = {"measured": y}
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
    f"{name}\n{psnr(image[3:4], x[3:4]).item():.1f} dB" for name, image in outputs.items()
]
figure, axes = plt.subplots(2, 4, figsize=(9, 5.4), layout="constrained")
axes.flat[-1].set_axis_off()
for ax, title, image in zip(axes.flat, titles, images.values()):
    ax.imshow(image[3, 0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(title, fontsize=14)
    ax.set_axis_off()
plt.show()
