r"""
Noise in a loop of your own
===========================

No unrolled model of deepinv's is needed: a loop written by hand becomes a jittered one by a layer,
:class:`deepinv_jitter.Jitter`, which is used like :class:`torch.nn.Dropout`. It adds noise in
``train()`` and is silent in ``eval()``; whatever looks for jitter, the trainers, the resume, the
reports, finds it. The loop here sharpens photographs that a moving camera has blurred, by gradient
descent with momentum and a network of its own in every step.
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
    def __init__(self, steps=4, sigma=0.0):
        super().__init__()
        self.networks = nn.ModuleList(
            dj.UnrolledDnCNN(3, depth=4, width=16, residual=True) for _ in range(steps)
        )
        self.momentum = nn.Parameter(torch.full((steps,), 0.3))
        self.jitter = dj.Jitter(sigma)

    def forward(self, y, physics):
        x = previous = physics.A_adjoint(y)
        for network, beta in zip(self.networks, self.momentum):
            v = x + beta * (x - previous)
            gradient = physics.A_adjoint(physics.A(v) - y)
            gradient = self.jitter(gradient)  # the one line
            previous, x = x, network(v - gradient)
        return x


# %%
# Photographs
# -----------
# Crops of photographs that scikit-image ships, at half the resolution; the test photograph is
# another one. The camera moves along the diagonal over seven pixels.


def photograph(name):
    pixels = torch.from_numpy(getattr(skimage.data, name)()[..., :3].copy())
    image = pixels.movedim(-1, 0)[None] / 255
    return interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True)


def crops(image, size=48, stride=32):
    windows = image[0].unfold(1, size, stride).unfold(2, size, stride)
    return windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)


train = torch.cat([crops(photograph(name)) for name in ("astronaut", "coffee", "rocket")])
data = dinv.datasets.TensorDataset(x=train, use_dict_output=True)
test = photograph("chelsea")[..., :96, 60:156]


def camera(seed):
    noise = dinv.physics.GaussianNoise(0.01, rng=torch.Generator().manual_seed(seed))
    motion = torch.eye(7)[None, None] / 7
    return dinv.physics.Blur(motion, padding="reflect", noise_model=noise)


def trained(sigma):
    torch.manual_seed(0)
    return dj.fit(Loop(sigma=sigma), camera(seed=0), data, epochs=10, lr=4e-3, ema=0.99)


models = {"MSE": trained(0.0), "jittered": trained(0.05)}

# %%
# Clean and under attack
# ----------------------
# The attack changes the blurred photograph by twice the norm of its noise.

physics = camera(seed=1)
y = physics(test)
attack = dj.FrankWolfeAttack(dj.L2Ball(2.0, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR()
panels = {"truth": test, "measured": y}
for name, model in models.items():
    delta = attack(model, test, y, physics)
    with torch.no_grad():
        panels[name] = model(y, physics)
        panels[f"{name}, attacked"] = model(y + delta, physics)

figure, axes = plt.subplots(2, 3, figsize=(9, 6.8), layout="constrained")
for ax, (name, image) in zip(axes.T.flat, panels.items()):
    value = "" if name == "truth" else f"\n{psnr(image, test).item():.1f} dB"
    ax.imshow(image[0].movedim(0, -1).clamp(0, 1))
    ax.set_title(name + value, fontsize=16)
    ax.set_axis_off()
plt.show()
