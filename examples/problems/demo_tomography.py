r"""
Computed tomography by FISTA
============================

Nothing is specific to proximal gradient descent either: here deepinv's FISTA, unrolled,
reconstructs slices from few views. The model is built with deepinv alone and jittered by one line.
The attack moves the sinogram by the norm of its noise.
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
# The attacked sinogram is that of the network trained with MSE; each network meets its own.

physics = scanner(seed=1)
y = physics(test)
attack = dj.FrankWolfeAttack(dj.L2Ball(1.0, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR()

panels = {"truth": test, "backprojection": physics.A_adjoint(y), "sinogram": y}
for name, model in models.items():
    attacked = y + attack(model, test, y, physics)
    panels.setdefault("sinogram, attacked", attacked)
    with torch.no_grad():
        panels |= {name: model(y, physics), f"{name}, attacked": model(attacked, physics)}
    clean, worst = (psnr(panels[k], test).mean() for k in (name, f"{name}, attacked"))
    print(f"{name:10s} clean {clean:5.2f} dB, attacked {worst:5.2f} dB")

figure, axes = plt.subplots(2, 4, figsize=(9, 5.4), layout="constrained")
for ax, (name, image) in zip(axes.T.flat, panels.items()):
    measured = image.shape != test.shape
    top = image[3].max() if measured else 1
    value = "" if measured or name == "truth" else f"{psnr(image[3:4], test[3:4]).item():.1f} dB"
    ax.imshow(image[3, 0], cmap="gray", vmin=0, vmax=top, aspect="auto" if measured else None)
    ax.set_title(f"{name}\n{value}", fontsize=14)
    ax.set_axis_off()
plt.show()
