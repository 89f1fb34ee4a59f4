r"""
What robustness costs: choosing a scheme
========================================

Every scheme has a knob, which trades accuracy on clean measurements for accuracy under attack, and
turned too far may lose both. So schemes are compared as curves, not as points: accuracy to the
right, robustness upwards. What is up and to the right of another is better at both; along the outer
edge, the frontier, you choose.
"""

# %%
# A small problem
# ---------------
# Brain MRI of 32 x 32 pixels, 4x accelerated: so small that fourteen trainings fit into a demo.
# Each averages its weights (``ema``), so that it does not end where its last steps happen to be.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

SIZE, SEEDS = (32, 32), (0, 1)
brain = dict(img_size=SIZE, resolution=6)
train = dj.BrainSliceDataset("train", contrast=True, flip=True, copies=4, **brain)
x = torch.stack([sample["x"] for sample in dj.BrainSliceDataset("test", **brain)])


def acquisition(seed):
    noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(seed))
    physics = dj.SingleCoilMRI(img_size=SIZE, noise_model=noise)
    return physics, dj.FastMRIMaskGenerator(SIZE, acceleration=4, seed=seed)


def trained(seed, jitter=None, **options):
    torch.manual_seed(seed)
    network = dj.UnrolledDnCNN(2, depth=4, width=16, residual=True)
    model = dj.UnfoldedPGD(network, max_iter=3, jitter=jitter)
    physics, masks = acquisition(seed)
    return dj.fit(
        model,
        physics,
        train,
        epochs=6,
        lr=6e-3,
        batch_size=8,
        physics_generator=masks,
        ema=0.99,
        **options,
    )


# %%
# Three schemes, two turns of each knob
# -------------------------------------
# MSE training is the common start of all curves, where every knob is at zero. The attacks are a
# single step each; their knob is the radius, in norms of the noise.


def attacked(seed, radius):
    ball = dj.L2Ball(radius, relative_to="noise")
    attack = dj.FrankWolfeAttack(ball, steps=1, keep="last")
    return trained(seed, trainer=dj.AttackTrainer, attack=attack)


schemes = {
    "SPGD jittering, σ": ((0.05, 0.2), lambda s, k: trained(s, jitter=k)),
    "input jittering, σ": (
        (0.1, 0.2),
        lambda s, k: trained(s, trainer=dj.InputJitterTrainer, sigma=k),
    ),
    "adversarial training, radius": ((0.25, 1.0), attacked),
}
models = {("MSE", 0, seed): trained(seed) for seed in SEEDS}
for scheme, (knobs, training) in schemes.items():
    models |= {(scheme, k, seed): training(seed, k) for k in knobs for seed in SEEDS}

# %%
# All on the same measurements
# ----------------------------

physics, masks = acquisition(seed=2)
comparison = dj.evaluate_robustness(
    {str(key): model for key, model in models.items()},
    [{"x": x, "params": masks.step(len(x))}],
    physics,
    attacks=dj.FrankWolfeAttack(dj.L2Ball(1.0, relative_to="noise"), steps=10),
    epsilons=0.5,
    metrics={"PSNR": dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)},
    draws=1,
    verbose=False,
)


def accuracy(*key):
    """PSNR (dB), clean and attacked: one row for each seed."""
    rows = []
    for seed in SEEDS:
        values = comparison.reports[str((*key, seed))].values
        worst = next(v for condition, v in values.items() if "worst" in condition)
        rows.append([values["clean"]["PSNR"].mean(), worst["PSNR"].mean()])
    return torch.tensor(rows)


# %%
# The frontier
# ------------
# A marker is the mean of two trainings, which are the ends of its thin line: where these overlap,
# nothing is decided. Two are few, and so are 17 slices: a frontier to decide by has more of both.
#
# Here small turns of the three knobs cannot be told apart. Large ones can: all cost accuracy, only
# adversarial training keeps its robustness, and the jitter of 0.2 is worse at both than none.

plt.rcParams["font.size"] = 13
figure, ax = plt.subplots(figsize=(6.4, 5.4), layout="constrained")
for (scheme, (knobs, _)), marker in zip(schemes.items(), "osD"):
    rows = torch.stack([accuracy("MSE", 0)] + [accuracy(scheme, k) for k in knobs])
    mean = rows.mean(1)
    (line,) = ax.plot(*mean.T, marker + "-", lw=3, ms=9, label=scheme)
    for pair in rows[1:]:
        ax.plot(*pair.T, "-", color=line.get_color(), lw=1)
    for k, point in zip(knobs, mean[1:].tolist()):
        options = dict(textcoords="offset points", xytext=(10, 6), color=line.get_color())
        ax.annotate(f"{k:g}", point, **options)
    print(scheme, [f"{clean:.2f} / {worst:.2f} dB" for clean, worst in mean])
ax.plot(*accuracy("MSE", 0).mean(0), "*", ms=20, color="black", label="MSE training")
ax.set(xlabel="PSNR, clean [dB]", ylabel="PSNR, attacked with half the noise [dB]")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
