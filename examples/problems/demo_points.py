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
# prior (:class:`~deepinv_jitter.GradientPrior`). SGD jittering is an argument of the model, the
# other two are trainers.


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
# The three risks
# ---------------
# The paper's expectations of the squared error, here as distances from the truth, on the same test
# measurements for all: of the average case, with more noise in the measurements
# (:class:`~deepinv_jitter.Risk` also tells its standard error), of the worst case within the
# radius, and of generalisation, when it is the truth that moves. There the robust ones pay: what
# draws everything to the one point that it knows follows no other.

x = torch.stack([sample["x"] for sample in dj.PointDataset(200)])
physics = problem(seed=1)
y = physics(x)
strong = dj.APGDAttack(dj.L2Ball(RADIUS), steps=50)

print(f"{'distance':17s}{'clean':>8s}{'more noise':>12s}{'worst case':>12s}{'truth moves':>13s}")
for name, model in models.items():
    rng = torch.Generator().manual_seed(2)
    risks = [
        dj.average_case_risk(model, x, y, physics, sigma_e=0.0),
        dj.average_case_risk(model, x, y, physics, sigma_e=RADIUS, generator=rng),
        dj.worst_case_risk(model, x, y, physics, attack=strong),
        dj.generalization_risk(model, x, y, physics, sigma_g=RADIUS, generator=rng),
    ]
    columns = zip(risks, (8, 12, 12, 13))
    print(f"{name:17s}" + "".join(f"{risk.mean**0.5:{width}.4f}" for risk, width in columns))

# %%
# Maps of the plane
# -----------------
# The colour of a point is the error that its reconstruction has. Dots are test measurements.

axis = torch.linspace(-1, 1, 201)
plane = torch.cartesian_prod(axis, axis)
plt.rcParams["font.size"] = 13
figure, axes = plt.subplots(2, 2, figsize=(7.4, 6.4), layout="constrained")
for ax, (name, model) in zip(axes.flat, models.items()):
    with torch.no_grad():
        error = model(plane, physics).norm(dim=1).reshape(len(axis), -1)
    picture = ax.imshow(
        error.T, extent=(-1, 1, -1, 1), origin="lower", cmap="magma", norm="log", vmin=1e-2, vmax=1
    )
    ax.plot(*y.T, ".", color="white", ms=2, alpha=0.7)
    ax.set(title=name, xticks=(-1, 0, 1), yticks=(-1, 0, 1))
figure.colorbar(picture, ax=axes, label="distance to the truth")
plt.show()
