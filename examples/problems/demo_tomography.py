r"""
Computed tomography by FISTA
============================

Nothing is specific to proximal gradient descent either: here deepinv's FISTA, unrolled,
reconstructs slices from few views. The model is built with deepinv alone and jittered by one line.
The attack moves the sinogram by the norm of its noise, and what comes out shows where a network
believes more than it was told.
"""

# %%
# Thirty views
# ------------
# Slices of the MNI152 brain, as a stand-in for CT, and parallel beams with a little noise, by
# deepinv's physics.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

SIZE, VIEWS = 64, 30


def magnitude(split, **kwargs):
    slices = dj.BrainSliceDataset(split, img_size=(SIZE, SIZE), resolution=3, **kwargs)
    return torch.stack([sample["x"][:1] for sample in slices])


train, test = magnitude("train", contrast=True), magnitude("test", spacing=2)


def scanner(seed):
    return dinv.physics.Tomography(
        angles=VIEWS,
        img_width=SIZE,
        circle=False,
        normalize=True,  # to norm 1, so that a step size of 1 is safe
        noise_model=dinv.physics.GaussianNoise(0.03, rng=torch.Generator().manual_seed(seed)),
    )


# %%
# FISTA, with and without the line
# --------------------------------


def trained(sigma):
    torch.manual_seed(0)
    denoiser = dinv.models.DnCNN(1, 1, depth=4, nf=24, pretrained=None)
    model = dinv.optim.FISTA(
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.PnP(denoiser),
        stepsize=1.0,
        max_iter=4,
        unfold=True,
        trainable_params=["stepsize"],
    )
    dj.jitter(model, sigma)  # the one line
    data = dinv.datasets.TensorDataset(x=train, use_dict_output=True)
    return dj.fit(model, scanner(seed=0), data, epochs=6, lr=3e-3)


models = {"MSE": trained(0.0), "jittered": trained(0.05)}

# %%
# Clean and under attack
# ----------------------
# On the left the sinogram, twice: the attack cannot be seen in it. Filtered backprojection is the
# reference.

physics = scanner(seed=1)
y = physics(test)
attack = dj.FrankWolfeAttack(dj.L2Ball(1.0, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR()

deltas = {name: attack(model, test, y, physics) for name, model in models.items()}
columns = [("truth", test, test), ("sinogram", y, y + deltas["MSE"])]
for name, model in models.items():
    with torch.no_grad():
        columns.append((name, model(y, physics), model(y + deltas[name], physics)))

figure, axes = plt.subplots(2, 4, figsize=(9, 5.2), layout="constrained")
for pair, (name, clean, attacked) in zip(axes.T, columns):
    for ax, image, kind in zip(pair, (clean, attacked), ("clean", "attacked")):
        top = 1 if image.shape == test.shape else y[3].max()
        ax.imshow(image[3, 0], cmap="gray", vmin=0, vmax=top, aspect="auto")
        ax.set_axis_off()
        title = f"{name}, {kind}"
        if name in models:
            print(f"{title:20s}{psnr(image, test).mean():6.2f} dB")
            title += f"\n{psnr(image[3:4], test[3:4]).item():.1f} dB"
        ax.set_title(title, fontsize=10)
plt.show()
