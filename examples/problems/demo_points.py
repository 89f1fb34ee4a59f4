r"""
The idea, on points of the plane
================================

The smallest problem of the paper: recover a point :math:`x` from :math:`y = x + z`, with noise
:math:`z`. Four unrolled networks, alike but for their training, are shown as maps of the plane: how
far from the truth does each measurement end up?

A network trained with the mean squared error (MSE) is good where it saw measurements, and anything
elsewhere. The three robust trainings look further: adversarial training (AT) at the worst
perturbation within a radius, input jittering at random ones, and SGD jittering perturbs every
gradient step inside the network.
"""

# %%
# The problem
# -----------
# All truths are the same point, as in the paper; noise is drawn anew in every epoch.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

import deepinv_jitter as dj

RADIUS = 0.2  # of the attack, twice the standard deviation of the noise

dataset = dinv.datasets.TensorDataset(x=torch.zeros(200, 2), use_dict_output=True)
loader = DataLoader(
    dataset,
    sampler=BatchSampler(RandomSampler(dataset), 200, drop_last=False),
    batch_size=None,  # a set of tensors gives whole batches at once
)


def problem(seed):
    noise = dinv.physics.GaussianNoise(0.1, rng=torch.Generator().manual_seed(seed))
    return dinv.physics.Denoising(noise)


# %%
# Four trainings
# --------------
# Unrolled gradient descent, eq. (8) of the paper, with a small network as the gradient of the
# prior. SGD jittering is an argument of the model, the other two are trainers.


def trained(trainer=dj.JitterTrainer, jitter=None, **options):
    torch.manual_seed(0)
    network = dj.PointMLP()
    model = dj.UnfoldedGD(network, stepsize=0.5, max_iter=10, jitter=jitter)
    plain = {"scheduler": None, "grad_clip": None}
    options = plain | {"trainer": trainer} | options
    return dj.fit(model, problem(seed=0), loader, epochs=400, **options)


attack = dj.FrankWolfeAttack(dj.L2Ball(RADIUS), steps=3, keep="last")
models = {
    "MSE": trained(),
    "AT": trained(dj.AttackTrainer, attack=attack),
    "input jittering": trained(dj.InputJitterTrainer, sigma=0.2),
    "SGD jittering": trained(jitter=0.2),
}

# %%
# How robust is each?
# -------------------
# The same test measurements for all, clean and at their worst within the radius. The error is the
# distance to the truth.

x = torch.zeros(200, 2)
physics = problem(seed=1)
y = physics(x)
strong = dj.APGDAttack(dj.L2Ball(RADIUS), steps=50)

print(f"{'distance to the truth':22s}{'clean':>8s}{'worst case':>12s}")
for name, model in models.items():
    result = strong.run(model.eval(), x, y, physics)
    clean, worst = (loss.sqrt().mean() for loss in (result.loss_clean, result.loss))
    print(f"{name:22s}{clean:8.4f}{worst:12.4f}")

# %%
# Maps of the plane
# -----------------
# The colour of a point is the error that its reconstruction has. Dots are test measurements.

axis = torch.linspace(-1, 1, 201)
plane = torch.cartesian_prod(axis, axis)
figure, axes = plt.subplots(1, 4, figsize=(12, 3.4), layout="constrained")
for ax, (name, model) in zip(axes, models.items()):
    with torch.no_grad():
        error = model(plane, physics).norm(dim=1).reshape(len(axis), -1)
    picture = ax.imshow(
        error.T, extent=(-1, 1, -1, 1), origin="lower", cmap="magma", norm="log", vmin=1e-2, vmax=1
    )
    ax.plot(*y.T, ".", color="white", ms=2, alpha=0.7)
    ax.set(title=name, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
figure.colorbar(picture, ax=axes, label="distance to the truth")
plt.show()
