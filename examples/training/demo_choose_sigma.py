r"""
Choosing the noise level
========================

Jittering has one number to choose, the level :math:`\sigma` of the noise: too little does nothing,
too much costs accuracy. The paper reads it off a curve (section 8.2). Here the same unrolled
network, for small brain MRI, is trained with a few levels; each is judged on *validation* data,
clean and under attack; :func:`deepinv_jitter.choose_sigma` picks the most robust level that costs
no accuracy, and the test data see that one alone.
"""

# %%
# Settings
# --------

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

SIZE, NOISE = (48, 48), 0.05
RADIUS = 0.5  # of the attack, in norms of the measurement noise
LEVELS = (0.0, 0.02, 0.05, 0.1, 0.2)
EPOCHS = 5

# %%
# Slices, masks and network
# -------------------------
# The slices held out for tests are shared between validation and test. Every evaluation has the
# same masks and the same noise.


def slices(split, **kwargs):
    return dj.BrainSliceDataset(split, img_size=SIZE, resolution=192 / SIZE[0], **kwargs)


def acquisition(seed):
    noise = dinv.physics.GaussianNoise(NOISE, rng=torch.Generator().manual_seed(seed))
    physics = dj.SingleCoilMRI(img_size=SIZE, noise_model=noise)
    return physics, dj.FastMRIMaskGenerator(SIZE, acceleration=4, seed=seed)


held_out = slices("test")
held_out = torch.stack([held_out[i]["x"] for i in range(len(held_out))])
validation, test = held_out[1::2], held_out[::2]


def trained(sigma):
    torch.manual_seed(0)
    network = dj.UnrolledDnCNN(2, depth=4, width=16, residual=True)
    model = dj.UnfoldedPGD(network, stepsize=1.0, max_iter=4, jitter=sigma)
    physics, masks = acquisition(seed=0)
    data = slices("train", contrast=True, copies=3)
    return dj.fit(model, physics, data, epochs=EPOCHS, lr=4e-3, physics_generator=masks)


def report(model, x):
    physics, masks = acquisition(seed=1)
    return dj.evaluate_robustness(
        model,
        [{"x": x, "params": masks.step(len(x))}],
        physics,
        attacks=dj.FrankWolfeAttack(dj.L2Ball(1.0, relative_to="noise"), steps=10),
        epsilons=[RADIUS],
        metrics={"PSNR": dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)},
        draws=1,
        verbose=False,
    )


# %%
# The curve
# ---------

models, clean, attacked = {}, {}, {}
print("PSNR (dB) on validation data")
for sigma in LEVELS:
    models[sigma] = trained(sigma)
    values = report(models[sigma], validation).values
    clean[sigma] = values["clean"]["PSNR"]
    attacked[sigma] = next(v["PSNR"] for k, v in values.items() if "worst" in k)
    print(
        f"sigma {sigma:<4g} clean {clean[sigma].mean():5.2f}  "
        f"attacked {attacked[sigma].mean():5.2f}"
    )

# %%
# The choice
# ----------
# The smallest level, no noise, is the accuracy to be kept; a tenth of a decibel may go.

sigma = dj.choose_sigma(clean, attacked, tolerance=0.1)
print(f"\nchosen: sigma = {sigma:g}; on test data:")
print(report(models[sigma], test).table())

# %%
# The curve, with the accuracy to be kept as the dashed line and the chosen level circled.

plt.rcParams["font.size"] = 13
figure, ax = plt.subplots(figsize=(6.4, 5), layout="constrained")
places = range(len(LEVELS))
for curve, color, marker, label in (
    (clean, "#0072B2", "o", "clean"),
    (attacked, "#D55E00", "s", "under attack"),
):
    means = [curve[s].mean().item() for s in LEVELS]
    ax.plot(places, means, marker + "-", color=color, label=label)
    chosen = LEVELS.index(sigma)
    ax.plot(chosen, means[chosen], "o", ms=13, mfc="none", mec="black", mew=1.5)
ax.axhline(clean[0.0].mean() - 0.1, color="0.5", ls="--", lw=1)
ax.set_xticks(places, [f"{s:g}" for s in LEVELS])
ax.set(
    xlabel=r"level of the noise $\sigma$",
    ylabel="PSNR [dB]",
    title=f"{len(validation)} validation slices, one training each",
)
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
plt.show()
