r"""
Self-supervised training with jittering
=======================================

No ground truth is needed: any of deepinv's losses trains a jittered model. Here the network sees
only blurred, noisy images of brain slices. Recorrupted2Recorrupted (R2R) adds noise to the
measurements and asks the network to predict them as they were without it; jittering perturbs the
gradient steps as always.
"""

# %%
# Measurements alone
# ------------------
# Slices are measured once. The data set of the training holds the measurements, no truth.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

SIGMA = 0.05  # of the measurement noise
brain = dict(img_size=(48, 48), resolution=4)


def magnitude(split, **kwargs):
    slices = dj.BrainSliceDataset(split, **brain, **kwargs)
    return torch.stack([sample["x"][:1] for sample in slices])


def camera(seed):
    return dinv.physics.Blur(
        dinv.physics.functional.gaussian_blur(sigma=(0.8, 0.8)),
        padding="reflect",
        noise_model=dinv.physics.GaussianNoise(SIGMA, rng=torch.Generator().manual_seed(seed)),
    )


x_train, x_test = magnitude("train", contrast=True), magnitude("test", spacing=2)
physics = camera(seed=0)
y_train, y_test = physics(x_train), camera(seed=1)(x_test)

# %%
# Three trainings
# ---------------
# R2R without and with jittering, and MSE training with the truth, which is out of reach in
# practice, for comparison. The trainer is the same; only its data and its loss differ. (Not every
# loss suits jittering: SURE compares two evaluations of the model, and jitter makes it two models.)


def trained(loss, jitter=None, x=None):
    torch.manual_seed(0)
    network = dinv.models.DnCNN(1, 1, depth=4, nf=24, pretrained=None)
    model = dj.UnfoldedPGD(network, sigma_denoiser=SIGMA, stepsize=1.0, max_iter=3, jitter=jitter)
    data = dinv.datasets.TensorDataset(x=x, y=y_train, use_dict_output=True)
    return dj.fit(model, physics, data, losses=loss, epochs=12, lr=2e-3)


def r2r():
    noise = dinv.physics.GaussianNoise(SIGMA, rng=torch.Generator().manual_seed(2))
    return dinv.loss.R2RLoss(noise_model=noise, alpha=0.2)


models = {
    "R2R": trained(r2r()),
    "R2R, jittered": trained(r2r(), jitter=0.02),
    "MSE, with the truth": trained(dinv.loss.SupLoss(), x=x_train),
}

# %%
# Results
# -------
# The truth serves for the test alone.

attack = dj.FrankWolfeAttack(dj.L2Ball(0.5, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR()

panels = {"truth": x_test, "measured": y_test}
print(f"{'PSNR (dB)':20s}{'clean':>8s}{'attacked':>10s}")
for name, model in models.items():
    delta = attack(model, x_test, y_test, physics)
    with torch.no_grad():
        panels[name] = model(y_test, physics)
        attacked = model(y_test + delta, physics)
    clean, worst = (psnr(x, x_test).mean() for x in (panels[name], attacked))
    print(f"{name:20s}{clean:8.2f}{worst:10.2f}")

figure, axes = plt.subplots(2, 3, figsize=(7.5, 5.9), layout="constrained")
order = ["truth", "R2R", "R2R, jittered", "measured", "MSE, with the truth"]
axes.flat[-1].set_axis_off()
for ax, name in zip(axes.flat, order):
    image = panels[name]
    value = psnr(image[3:4], x_test[3:4]).item()
    ax.imshow(image[3, 0], cmap="gray", vmin=0, vmax=1)
    ax.set_title(name if name == "truth" else f"{name}\n{value:.1f} dB", fontsize=14)
    ax.set_axis_off()
plt.show()
