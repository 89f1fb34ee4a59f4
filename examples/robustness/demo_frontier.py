r"""
What robustness costs: choosing a scheme
========================================

Every scheme has a knob, and every turn of it trades accuracy on clean measurements for accuracy
under attack. So schemes are compared as curves, not as points: one network for each setting,
accuracy to the right, robustness upwards. What is up and to the right of another is better at both;
along the outer edge, the frontier, you choose.
"""

# %%
# A small problem
# ---------------
# Sections of the earth, blurred by a wavelet: small, so that ten trainings fit into a demo.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

SIZE = (32, 32)
train = dj.ReflectivityDataset(64, img_size=SIZE, seed=1)
test = torch.utils.data.DataLoader(dj.ReflectivityDataset(12, img_size=SIZE, seed=2), 12)


def survey(seed):
    noise = dinv.physics.GaussianNoise(0.02, rng=torch.Generator().manual_seed(seed))
    return dj.SeismicConvolution(noise_model=noise)


def trained(jitter=None, **options):
    torch.manual_seed(0)
    network = dj.UnrolledDnCNN(1, depth=4, width=16, residual=True)
    model = dj.UnfoldedPGD(network, max_iter=3, jitter=jitter)
    return dj.fit(model, survey(seed=0), train, epochs=20, lr=8e-3, batch_size=8, **options)


# %%
# Ten trainings
# -------------
# MSE training is the common start of all curves, where every knob is at zero.


def attacked(radius):
    attack = dj.FrankWolfeAttack(dj.L2Ball(radius, relative_to="noise"), steps=3, keep="last")
    return trained(trainer=dj.AttackTrainer, attack=attack)


curves = {
    "SPGD jittering, σ": {s: trained(jitter=s) for s in (0.02, 0.05, 0.1)},
    "input jittering, σ": {
        s: trained(trainer=dj.InputJitterTrainer, sigma=s) for s in (0.02, 0.04, 0.08)
    },
    "adversarial training, radius": {r: attacked(r) for r in (0.25, 0.5, 1.0)},
}
models = {"MSE": trained()}
models |= {f"{curve} {k}": m for curve, nets in curves.items() for k, m in nets.items()}

# %%
# All on the same measurements
# ----------------------------

comparison = dj.evaluate_robustness(
    models,
    test,
    survey(seed=1),
    attacks=dj.FrankWolfeAttack(dj.L2Ball(1.0, relative_to="noise"), steps=10),
    epsilons=1.0,
    draws=1,
    verbose=False,
)


def accuracy(name):
    values = comparison.reports[name].values
    worst = next(v for k, v in values.items() if "worst" in k)
    return values["clean"]["PSNR"].mean().item(), worst["PSNR"].mean().item()


# %%
# The frontier
# ------------
# Trainings as short as these end where chance has it, to some tenths of a decibel: read how a curve
# runs, not where a single point lies. A frontier to decide by has several seeds for every point.

figure, ax = plt.subplots(figsize=(6.4, 4.8), layout="constrained")
for (curve, nets), marker in zip(curves.items(), "osD"):
    points = [accuracy("MSE")] + [accuracy(f"{curve} {k}") for k in nets]
    ax.plot(*zip(*points), marker + "-", label=curve)
    for k, point in zip(nets, points[1:]):
        ax.annotate(f"{k:g}", point, textcoords="offset points", xytext=(6, 4), fontsize=9)
    print(curve, [f"{clean:.2f} / {worst:.2f} dB" for clean, worst in points])
ax.plot(*accuracy("MSE"), "*", ms=14, color="black", label="MSE training")
ax.set(xlabel="PSNR, clean [dB]", ylabel="PSNR, worst case of the norm of the noise [dB]")
ax.set_title("one training each, 12 sections")
ax.legend(frameon=False, fontsize=9)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
