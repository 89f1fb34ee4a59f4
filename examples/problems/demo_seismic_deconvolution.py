r"""
Seismic deconvolution
=====================

A seismic trace is the reflectivity of the earth convolved with a wavelet, plus noise; to undo that
is badly conditioned, and a small perturbation of the traces can move layers. Two unrolled networks
with the same start and the same data, one trained with the mean squared error (MSE), one with SPGD
jittering, are compared on sections they never saw, clean and under attack, with a sparse
deconvolution as the reference. (It knows how the sections are made, and is the better one here.)

The networks are small and were trained for some minutes each; they come with the package, see
:func:`deepinv_jitter.demo_network`.
"""

# %%
# Sections and measurements
# -------------------------
# Layered-earth sections, time downwards, traces across; a Ricker wavelet of unit norm, and noise.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

sections = dj.ReflectivityDataset(6, img_size=(96, 96), seed=3)
x = torch.stack([section["x"] for section in sections])
noise = dinv.physics.GaussianNoise(0.01, rng=torch.Generator().manual_seed(1))
wavelet = dj.ricker(51, a=4.0)  # or by frequency=25.0 (Hz) and dt=2.0 (ms)
physics = dj.SeismicConvolution(wavelet, noise_model=noise)  # of norm 1, whatever the wavelet's
y = physics(x)

# %%
# The networks
# ------------
# Ten iterations of eq. (12) of the paper. In training, ``jitter`` adds noise to each of them.

models = {
    "MSE": dj.demo_network("seismic_mse"),
    "SPGD jittering": dj.demo_network("seismic_jittered"),
}

# %%
# The reference: :math:`\ell_1` deconvolution, with the best weight of a few on other sections.


def sparse(y, weight):
    algorithm = dinv.optim.FISTA(
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.L1Prior(),
        lambda_reg=weight,
        stepsize=1.0,
        max_iter=300,
    )
    return algorithm(y, physics)


psnr = dinv.metric.PSNR(max_pixel=2.0)  # sections lie in [-1, 1]
others = dj.ReflectivityDataset(4, img_size=(96, 96), seed=4)
others = torch.stack([section["x"] for section in others])
y_others = physics(others)
weight = max((1e-3, 2e-3, 4e-3, 8e-3), key=lambda w: psnr(sparse(y_others, w), others).mean())

# %%
# Clean, more noise, the worst case, and a layer
# ----------------------------------------------
# The attack changes the traces by half the norm of their noise. The layer is short and flat, as no
# section of the training has it: how much of it comes back
# (:func:`~deepinv_jitter.contrast_recovery`) is 1 for all of it and 0 for nothing.

attack = dj.APGDAttack(dj.L2Ball(0.5, relative_to="noise"), steps=20)
more_noise = y + 0.02 * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
with_layer, region = dj.HorizontalLayer(height=0.3)(x)
y_layer = y + physics.A(with_layer - x)  # the same noise

methods = {"sparse": lambda y, physics: sparse(y, weight)} | models
panels = {"truth": x, "measured": y}
print(f"{'PSNR (dB)':16s}{'clean':>8s}{'noise +0.02':>13s}{'worst case':>12s}{'layer':>8s}")
for name, method in methods.items():
    with torch.no_grad():
        panels[name], noisy, layer = (method(v, physics) for v in (y, more_noise, y_layer))
    back = dj.contrast_recovery(layer, panels[name], with_layer, x).mean()
    scores = [psnr(panels[name], x).mean(), psnr(noisy, x).mean(), None, back]
    if name in models:
        delta = attack(method, x, y, physics)
        with torch.no_grad():
            panels[f"{name}\nattacked"] = method(y + delta, physics)
        scores[2] = psnr(panels[f"{name}\nattacked"], x).mean()
    cells = zip(scores, (8, 13, 12, 8))
    print(f"{name:16s}" + "".join(" " * w if s is None else f"{s:{w}.2f}" for s, w in cells))

# %%
# One section
# -----------
# Below each network: what the attack has changed in its reconstruction, at twice the contrast.

figure, axes = plt.subplots(2, 4, figsize=(9, 5.8), layout="constrained")
order = ["truth", "sparse", "MSE", "SPGD jittering"]
order += ["measured", None, "MSE\nattacked", "SPGD jittering\nattacked"]
for ax, name in zip(axes.flat, order):
    ax.set(xticks=[], yticks=[])
    if name is None:
        ax.plot(physics.wavelet, range(-25, 26), color="black")
        ax.set(ylim=(48, -48), box_aspect=1)  # time as in the sections
        ax.set_title("wavelet", fontsize=14)
        continue
    section = panels[name]
    value = psnr(section[:1], x[:1]).item()
    title = name if name in ("truth", "measured") else f"{name}\n{value:.1f} dB"
    if name.endswith("attacked"):
        section = 2 * (section - panels[name.removesuffix("\nattacked")])
    ax.imshow(section[0, 0], cmap="seismic", vmin=-0.6, vmax=0.6, aspect="auto")
    ax.set_title(title, fontsize=14)
plt.show()
