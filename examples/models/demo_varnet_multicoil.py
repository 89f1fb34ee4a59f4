r"""
Multi-coil MRI: jitter deepinv's VarNet
=======================================

deepinv's :class:`~deepinv.models.VarNet` is a loop with no iterator inside. ``at`` names the
submodules whose outputs get the noise, here the denoiser of every cascade; nothing else of the
network changes. It is trained on brain slices seen by four coils, 6x accelerated, once with the
mean squared error (MSE) and once with the noise.
"""

# %%
# Four coils
# ----------
# Each sees its side of the head, as a Gaussian, with a phase of its own; together they see every
# pixel with weight 1.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

SIZE, NOISE = (64, 64), 0.02
brain = dict(img_size=SIZE, resolution=3)
train = dj.BrainSliceDataset("train", contrast=True, **brain)
test = dj.BrainSliceDataset("test", spacing=2, **brain)

row, column = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SIZE], indexing="ij")
centres = ((-1, -1), (-1, 1), (1, -1), (1, 1))
coils = torch.stack([torch.exp(-((row - r) ** 2 + (column - c) ** 2) / 2) for r, c in centres])
coils = coils * torch.exp(1j * torch.arange(4.0))[:, None, None]
coils = coils / coils.abs().square().sum(0).sqrt()


def acquisition(seed):
    noise = dinv.physics.GaussianNoise(NOISE, rng=torch.Generator().manual_seed(seed))
    physics = dinv.physics.MultiCoilMRI(coil_maps=coils, img_size=(2, *SIZE), noise_model=noise)
    return physics, dj.FastMRIMaskGenerator(SIZE, acceleration=6, seed=seed)


# %%
# Where can the noise go?
# -----------------------
# Names come from ``named_modules()``. A pattern that fits nothing is refused, with candidates.


def network():
    torch.manual_seed(0)
    denoiser = dinv.models.DnCNN(2, 2, depth=4, nf=24, pretrained=None)
    return dinv.models.VarNet(denoiser, num_cascades=5, mode="e2e-varnet")


try:
    dj.jitter(network(), 0.02, at="cascades.*")
except ValueError as error:
    print(error)


def trained(sigma):
    model = network()
    if sigma:
        dj.jitter(model, sigma, at="backbone_net.*.denoiser")
    physics, masks = acquisition(seed=0)
    return dj.fit(model, physics, train, epochs=8, lr=2e-3, physics_generator=masks)


models = {"MSE": trained(0), "jittered": trained(0.02)}

# %%
# Clean, noisy and attacked
# -------------------------
# Perturbations of all coils together, on the sampled lines of k-space alone. Random ones of twice
# the norm of the noise are the measure for the worst of that norm.

physics, masks = acquisition(seed=1)
x = torch.stack([sample["x"] for sample in test])
physics.update(**masks.step(len(x)))
y = physics(x)
ball = dj.L2Ball(2.0, relative_to="noise")
psnr = dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)

attacks = {"clean": None, "random": dj.RandomAttack(ball), "attacked": None}
attacks["attacked"] = dj.FrankWolfeAttack(ball, steps=10)
figure, axes = plt.subplots(2, 4, figsize=(9, 5.2), layout="constrained")
axes[0, 0].imshow(x[3].norm(dim=0), cmap="gray", vmin=0, vmax=1)
axes[0, 0].set_title("truth\n", fontsize=10)
axes[1, 0].imshow(physics.A_adjoint(y)[3].norm(dim=0), cmap="gray", vmin=0, vmax=1)
axes[1, 0].set_title("zero-filled\n", fontsize=10)
for line, (name, model) in zip(axes, models.items()):
    for ax, (kind, attack) in zip(line[1:], attacks.items()):
        delta = attack(model, x, y, physics) if attack else 0
        with torch.no_grad():
            image = model(y + delta, physics)
        print(f"{name:10s}{kind:10s}{psnr(image, x).mean():6.2f} dB")
        ax.imshow(image[3].norm(dim=0), cmap="gray", vmin=0, vmax=1)
        ax.set_title(f"{name}, {kind}\n{psnr(image[3:4], x[3:4]).item():.1f} dB", fontsize=10)
for ax in axes.flat:
    ax.set_axis_off()
plt.show()
