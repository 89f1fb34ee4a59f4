r"""
Colour photographs: nothing is specific to MRI
==============================================

An unrolled network deblurs colour photographs, with a physics, a denoiser and metrics that are all
deepinv's own. It is trained on small crops of a few photographs which scikit-image ships, once with
the mean squared error (MSE) and once with SPGD jittering, and then applied to a whole photograph it
has never seen, clean and under attack.
"""

# %%
# Photographs
# -----------
# Crops of 48 x 48 pixels, at half the resolution and antialiased; every one is either from the
# training photographs or from the test photograph.

import deepinv as dinv
import matplotlib.pyplot as plt
import skimage.data
import torch
from torch.nn.functional import interpolate

import deepinv_jitter as dj


def photograph(name):
    pixels = torch.from_numpy(getattr(skimage.data, name)()[..., :3].copy())
    image = pixels.movedim(-1, 0)[None] / 255
    return interpolate(image, scale_factor=0.5, mode="bilinear", antialias=True)


def crops(image, size=48, stride=64):
    windows = image[0].unfold(1, size, stride).unfold(2, size, stride)
    return windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)


names = ("astronaut", "coffee", "rocket", "retina", "hubble_deep_field")
train = torch.cat([crops(photograph(name)) for name in names])
test = photograph("chelsea")[..., :144, 40:200]
print(f"{len(train)} training crops, test photograph {tuple(test.shape)}")

# %%
# Physics and networks
# --------------------
# A Gaussian blur and a little noise. Two networks with the same start.


def camera(seed):
    return dinv.physics.Blur(
        dinv.physics.functional.gaussian_blur(sigma=(1.5, 1.5)),
        padding="reflect",
        noise_model=dinv.physics.GaussianNoise(0.02, rng=torch.Generator().manual_seed(seed)),
    )


def trained(jitter=None):
    torch.manual_seed(0)
    denoiser = dinv.models.DnCNN(3, 3, depth=4, nf=32, pretrained=None)
    model = dj.UnfoldedPGD(denoiser, sigma_denoiser=0.02, stepsize=1.0, max_iter=3, jitter=jitter)
    data = dinv.datasets.TensorDataset(x=train, use_dict_output=True)
    return dj.fit(model, camera(seed=0), data, epochs=8, lr=2e-3)


models = {"MSE": trained(), "SPGD jittering": trained(jitter=0.05)}

# %%
# A photograph, clean and under attack
# ------------------------------------
# The network works on images of any size. The attack changes the blurred photograph by twice the
# norm of its noise: ripples appear, fewer in the jittered network, which is a little less sharp
# without an attack.

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

figure, axes = plt.subplots(2, 3, figsize=(9, 6.6), layout="constrained")
for ax, (name, image) in zip(axes.T.flat, panels.items()):
    value = "" if name == "truth" else f"\n{psnr(image, test).item():.2f} dB"
    ax.imshow(image[0].movedim(0, -1).clamp(0, 1))
    ax.set_title(name + value, fontsize=16)
    ax.set_axis_off()
plt.show()
