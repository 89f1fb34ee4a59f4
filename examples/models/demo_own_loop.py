r"""
Noise in a loop of your own
===========================

No unrolled model of deepinv's is needed: a loop written by hand becomes a jittered one by a layer,
:class:`deepinv_jitter.Jitter`, which is used like :class:`torch.nn.Dropout`. It adds noise in
``train()`` and is silent in ``eval()``; whatever looks for jitter, the trainers, the resume, the
reports, finds it. The loop here fills in photographs of which two thirds of the pixels are missing,
by gradient descent with momentum and a network of its own in every step.
"""

# %%
# The loop
# --------
# One line in ``forward`` is all that jittering takes.

import deepinv as dinv
import matplotlib.pyplot as plt
import skimage.data
import torch
from torch import nn
from torch.nn.functional import interpolate

import deepinv_jitter as dj


class Loop(nn.Module):
    def __init__(self, steps=5, sigma=0.0):
        super().__init__()
        self.denoisers = nn.ModuleList(
            dinv.models.DnCNN(3, 3, depth=4, nf=24, pretrained=None) for _ in range(steps)
        )
        self.momentum = nn.Parameter(torch.full((steps,), 0.3))
        self.jitter = dj.Jitter(sigma)

    def forward(self, y, physics):
        x = previous = physics.A_adjoint(y)
        for denoiser, beta in zip(self.denoisers, self.momentum):
            v = x + beta * (x - previous)
            gradient = physics.A_adjoint(physics.A(v) - y)
            gradient = self.jitter(gradient)  # the one line
            previous, x = x, denoiser(v - gradient)
        return x


# %%
# Photographs
# -----------
# Crops of photographs that scikit-image ships, at half the resolution; the test photograph is
# another one.


def photograph(name):
    pixels = torch.from_numpy(getattr(skimage.data, name)()[..., :3].copy())
    image = pixels.movedim(-1, 0)[None] / 255
    return interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True)


def crops(image, size=48, stride=48):
    windows = image[0].unfold(1, size, stride).unfold(2, size, stride)
    return windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)


train = torch.cat([crops(photograph(name)) for name in ("astronaut", "coffee", "rocket")])
data = dinv.datasets.TensorDataset(x=train, use_dict_output=True)
test = photograph("chelsea")[..., :144, 40:200]


def camera(size, seed):
    rng = torch.Generator().manual_seed(seed)
    noise = dinv.physics.GaussianNoise(0.02, rng=rng)
    mask = (torch.rand(1, *size, generator=rng) < 1 / 3).float()
    return dinv.physics.Inpainting((3, *size), mask=mask, noise_model=noise)


def trained(sigma):
    torch.manual_seed(0)
    return dj.fit(Loop(sigma=sigma), camera((48, 48), seed=0), data, epochs=16, lr=2e-3)


models = {"MSE": trained(0.0), "jittered": trained(0.02)}

# %%
# Clean and under attack
# ----------------------
# The attack changes the measured pixels by the norm of their noise, no others.

physics = camera(test.shape[-2:], seed=1)
y = physics(test)
attack = dj.FrankWolfeAttack(dj.L2Ball(1.0, relative_to="noise"), steps=10)
panels = {"truth": test, "measured": y}
for name, model in models.items():
    delta = attack(model, test, y, physics)
    with torch.no_grad():
        panels[name] = model(y, physics)
        panels[f"{name}, attacked"] = model(y + delta, physics)

psnr = dinv.metric.PSNR()
figure, axes = plt.subplots(2, 3, figsize=(10, 6.4), layout="constrained")
for ax, (name, image) in zip(axes.T.flat, panels.items()):
    value = "" if name == "truth" else f"\n{psnr(image, test).item():.2f} dB"
    ax.imshow(image[0].movedim(0, -1).clamp(0, 1))
    ax.set_title(name + value, fontsize=10)
    ax.set_axis_off()
plt.show()
