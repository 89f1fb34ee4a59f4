r"""
Fine-tune a checkpoint
======================

You have an unrolled network that was trained with the mean squared error (MSE), and want it more
robust without starting again. Two epochs more, from the same checkpoint, three ways: as before,
with the one line that adds noise to its gradient steps, and with attacks on its measurements. Then
all are judged on slices they never saw: clean, with four times as much noise as in training, and
under attack.
"""

# %%
# The checkpoint, and its data
# ----------------------------
# A network for brain MRI, 4x accelerated, which comes with the package. For one of your own, build
# your model as it was and load its checkpoint, before or after the one line. The files of deepinv's
# trainers, in a folder that has the date as its name, have the weights under a name::
#
#     path = dj.latest_checkpoint("runs/mse")  # or that of ckp_best.pth.tar
#     model.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
#
# A trainer's own ``ckpt_pretrained=path`` continues that run instead, its count of epochs included.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

SIZE, NOISE = (160, 128), 0.05
train = dj.BrainSliceDataset("train", img_size=SIZE, spacing=2, contrast=True)
test = dj.BrainSliceDataset("test", img_size=SIZE, spacing=3)


def acquisition(seed):
    noise = dinv.physics.GaussianNoise(NOISE, rng=torch.Generator().manual_seed(seed))
    physics = dj.SingleCoilMRI(img_size=SIZE, noise_model=noise)
    return physics, dj.FastMRIMaskGenerator(SIZE, acceleration=4, seed=seed)


# %%
# Three ways on
# -------------
# The learning rate is a fourth of that of the training before. ``relative`` noise is in units of
# the largest magnitude of each iterate.


def tuned(jitter=0.0, **options):
    torch.manual_seed(0)
    model = dj.jitter(dj.demo_network("mri_mse"), jitter)  # the one line
    physics, masks = acquisition(seed=0)
    return dj.fit(model, physics, train, epochs=2, lr=5e-4, physics_generator=masks, **options)


noise = dj.GaussianJitter(0.05, scale="relative")
ball = dj.L2Ball(0.5, relative_to="noise")
attack = dj.FrankWolfeAttack(ball, steps=2, keep="last")
models = {
    "the checkpoint": dj.demo_network("mri_mse"),
    "more MSE training": tuned(),
    "with jitter": tuned(noise),
    "with attacks": tuned(trainer=dj.AttackTrainer, attack=attack),
}

# %%
# What it was good for
# --------------------
# The worst case has the norm of the noise that is in the measurements anyway. Ten steps are a
# lower bound: a number to publish needs ``attacks="standard"``.

physics, masks = acquisition(seed=1)
x = torch.stack([sample["x"] for sample in test])
physics.update(**masks.step(len(x)))
y = physics(x)
extra = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)) * physics.mask
worst = dj.FrankWolfeAttack(dj.L2Ball(1.0, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)

columns = ("clean", "more noise", "attacked")
print(f"{'PSNR (dB)':20s}" + "".join(f"{name:>12s}" for name in columns))
figure, axes = plt.subplots(3, 4, figsize=(9, 8.6), layout="constrained")
for place, (name, model) in zip(axes.T, models.items()):
    measured = (y, y + 4 * NOISE * extra, y + worst(model, x, y, physics))
    with torch.no_grad():
        images = [model(z, physics) for z in measured]
    print(f"{name:20s}" + "".join(f"{psnr(image, x).mean():12.2f}" for image in images))
    for ax, image, column in zip(place, images, columns):
        ax.imshow(image[2].norm(dim=0), cmap="gray", vmin=0, vmax=1)
        value = psnr(image[2:3], x[2:3]).item()
        ax.set_title(f"{name}\n{column}, {value:.1f} dB", fontsize=13)
        ax.set_axis_off()
plt.show()
