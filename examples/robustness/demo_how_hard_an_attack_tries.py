r"""
How hard an attack tries
========================

A robustness number is as good as the attack behind it: one that gives up early makes any network
look robust. Four attacks on the same network and the same measurements, by how much harm they have
found after so many gradients; and the one that goes on until more gradients find no more.
"""

# %%
# One network, one ball
# ---------------------
# A network for brain MRI that was trained with the mean squared error, on three slices; the
# perturbations have at most the norm of the noise.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

SIZE, STEPS = (64, 64), 40
slices = dj.BrainSliceDataset("test", img_size=SIZE, resolution=3)
x = torch.stack([slices[i]["x"] for i in (3, 8, 13)])
noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(1))
mask = dj.FastMRIMaskGenerator(SIZE, acceleration=4, seed=1).step(1)["mask"]
physics = dj.SingleCoilMRI(mask, img_size=SIZE, noise_model=noise)
y = physics(x)
model = dj.demo_network("mri_mse")
ball = dj.L2Ball(1.0, relative_to="noise")

# %%
# Four attacks
# ------------
# Each gives an :class:`~deepinv_jitter.AttackResult`: the perturbation, the loss at every step, and
# flags, of which ``not_converged`` says that the second half of the steps still found more. The
# paper's attack takes 20 steps of a tenth of the radius.

attacks = {
    "the paper's PGD": dj.PGDAttack.paper(eps=1.0),
    "Frank-Wolfe": dj.FrankWolfeAttack(ball, steps=STEPS),
    "APGD": dj.APGDAttack(ball, steps=STEPS),
    "momentum": dj.MomentumAttack(ball, steps=STEPS),
}
eps = ball.radii(y, physics)  # absolute, as the paper's radius is: the same ball for all
results = {name: attack.run(model, x, y, physics, eps=eps) for name, attack in attacks.items()}
random = dj.RandomAttack(ball, samples=STEPS).run(model, x, y, physics)
converged = dj.ConvergedAttack.standard(ball).run(model, x, y, physics)


def excess(loss):
    """Squared error above that of the clean measurements, in shares of the most that was found."""
    return ((loss - random.loss_clean) / (converged.loss - converged.loss_clean)).mean(-1)


print(f"{'':18s}{'gradients':>10s}{'of the harm':>13s}{'not converged':>15s}")
for name, result in (results | {"random": random, "converged": converged}).items():
    gradients = torch.as_tensor(result.n_grad).float().mean()
    flagged = int(result.flags["not_converged"].sum())
    print(f"{name:18s}{gradients:10.0f}{excess(result.loss):13.2f}{flagged:10d} of {len(x)}")

# %%
# The worst of several, sample by sample, is an attack, too.

both = dj.WorstCase([attacks["APGD"], attacks["momentum"]]).run(model, x, y, physics)
print(f"\nthe worse of APGD and momentum: {excess(both.loss):.2f} of the harm")

# %%
# What each finds, and when
# -------------------------

plt.rcParams["font.size"] = 13
figure, ax = plt.subplots(figsize=(6.4, 5), layout="constrained")
for name, result in results.items():
    best = excess(result.trace).cummax(0).values
    (line,) = ax.plot(best, lw=3, label=name)
    ax.plot(len(best) - 1, best[-1], "o", ms=9, color=line.get_color())
ax.axhline(1, color="black", lw=2, label="converged")
ax.axhline(excess(random.loss), color="0.5", ls="--", lw=2, label=f"worst of {STEPS} random")
ax.set(xlabel="gradients", ylabel="share of the harm found", ylim=(0, 1.05))
ax.legend(frameon=False, loc="lower right")
ax.spines[["top", "right"]].set_visible(False)
plt.show()
