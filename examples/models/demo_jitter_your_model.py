r"""
Jitter your own model
=====================

One line turns an unrolled model that you have into a jittered one. The model stays what it is: the
same class, the same weights, the same names in its checkpoints, and in evaluation the same output.
Three models in the style of deepinv's own gallery, for the super-resolution of brain slices: PGD
with a denoiser and a step size of its own for each iteration, FISTA, and half-quadratic splitting.
"""

# %%
# Three models, as deepinv builds them
# ------------------------------------
# There is nothing of this package in them.

import copy

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

ITERATIONS = 3


def denoiser():
    return dinv.models.DnCNN(1, 1, depth=4, nf=24, pretrained=None)


def unrolled(algorithm, prior, stepsize):
    return algorithm(
        data_fidelity=dinv.optim.L2(),
        prior=prior,
        stepsize=stepsize,
        max_iter=ITERATIONS,
        unfold=True,
        trainable_params=["stepsize"],
    )


def pgd():
    priors = [dinv.optim.PnP(denoiser()) for _ in range(ITERATIONS)]
    return unrolled(dinv.optim.PGD, priors, stepsize=[1.0] * ITERATIONS)


def fista():
    return unrolled(dinv.optim.FISTA, dinv.optim.PnP(denoiser()), stepsize=1.0)


def hqs():
    return unrolled(dinv.optim.HQS, dinv.optim.PnP(denoiser()), stepsize=5.0)


# %%
# The one line
# ------------
# ``dj.jitter`` works in place and returns the model: its iterator is now within a
# :class:`~deepinv_jitter.JitteredIterator`. :func:`~deepinv_jitter.no_jitter` silences it for a
# while, :func:`~deepinv_jitter.unjitter` takes it away again.

torch.manual_seed(0)
model = pgd()
jittered = dj.jitter(copy.deepcopy(model), sigma=0.01)


def camera(seed):
    noise = dinv.physics.GaussianNoise(0.02, rng=torch.Generator().manual_seed(seed))
    return dinv.physics.Downsampling((1, 48, 48), filter="bilinear", factor=2, noise_model=noise)


physics = camera(seed=1)
y = physics(torch.rand(1, 1, 48, 48))
print("same checkpoint:", list(model.state_dict()) == list(jittered.state_dict()))
for mode in (True, False):
    with torch.no_grad():
        first, second = (m.train(mode)(y, physics) for m in (model, jittered))
    print(f"same output with train({mode}):", torch.equal(first, second))
with torch.no_grad(), dj.no_jitter(jittered.train()):
    print("same output with no_jitter:", torch.equal(first, jittered(y, physics)))

# %%
# Training
# --------
# ``dj.fit`` is a training by ``dj.JitterTrainer`` in one call: deepinv's trainer, with evaluation
# free of noise and an exact resume. A plain ``deepinv.Trainer`` trains a jittered model too.


def magnitude(split, **kwargs):
    slices = dj.BrainSliceDataset(split, img_size=(48, 48), resolution=4, **kwargs)
    return torch.stack([sample["x"][:1] for sample in slices])


train, test = magnitude("train", contrast=True, copies=2), magnitude("test", spacing=2)
data = dinv.datasets.TensorDataset(x=train, use_dict_output=True)


def trained(model):
    torch.manual_seed(1)
    return dj.fit(model, camera(seed=0), data, epochs=8, lr=2e-3, batch_size=8)


# %%
# Each of the three, with and without the line. How much noise suits a model depends on its
# gradients: :func:`deepinv_jitter.choose_sigma` tells.

y = physics(test)
attack = dj.FrankWolfeAttack(dj.L2Ball(1.0, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR()

bicubic = torch.nn.functional.interpolate(y, scale_factor=2, mode="bicubic")
panels = {"truth": test, "bicubic": bicubic}
print(f"{'PSNR (dB)':18s}{'clean':>8s}{'attacked':>10s}")
print(f"{'bicubic':18s}{psnr(bicubic, test).mean():8.2f}")
for name, build in {"PGD": pgd, "FISTA": fista, "HQS": hqs}.items():
    torch.manual_seed(0)
    model = build()
    for label, sigma in ((name, 0.0), (f"{name}, jittered", 0.01)):
        network = trained(dj.jitter(copy.deepcopy(model), sigma))
        delta = attack(network, test, y, physics)
        with torch.no_grad():
            panels[label] = network(y, physics)
            attacked = network(y + delta, physics)
        clean, worst = (psnr(x, test).mean() for x in (panels[label], attacked))
        print(f"{label:18s}{clean:8.2f}{worst:10.2f}")

# %%
# One slice
# ---------

figure, axes = plt.subplots(2, 4, figsize=(9, 5.4), layout="constrained")
for ax, (name, image) in zip(axes.T.flat, panels.items()):
    value = "" if name == "truth" else f"\n{psnr(image[3:4], test[3:4]).item():.1f} dB"
    ax.imshow(image[3, 0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(name + value, fontsize=14)
    ax.set_axis_off()
plt.show()
