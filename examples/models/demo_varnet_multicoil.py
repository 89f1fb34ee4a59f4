r"""
Multi-coil MRI: jitter deepinv's VarNet
=======================================

deepinv's :class:`~deepinv.models.VarNet` is a loop with no iterator inside. ``at`` names the
submodules whose outputs get the noise, here the denoiser of every cascade; nothing else of the
network changes. It is trained on brain slices seen by four coils, 4x accelerated: with the mean
squared error (MSE), with the noise, and with attacks on every second batch.
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

SIZE, NOISE = (48, 48), 0.02
brain = dict(img_size=SIZE, resolution=4)
train = dj.BrainSliceDataset("train", contrast=True, flip=True, copies=4, **brain)
test = dj.BrainSliceDataset("test", spacing=2, **brain)

row, column = torch.meshgrid(*[torch.linspace(-1, 1, n) for n in SIZE], indexing="ij")
centres = ((-1, -1), (-1, 1), (1, -1), (1, 1))
coils = torch.stack([torch.exp(-((row - r) ** 2 + (column - c) ** 2) / 2) for r, c in centres])
coils = coils * torch.exp(1j * torch.arange(4.0))[:, None, None]
coils = coils / coils.abs().square().sum(0).sqrt()


def acquisition(seed):
    noise = dinv.physics.GaussianNoise(NOISE, rng=torch.Generator().manual_seed(seed))
    physics = dinv.physics.MultiCoilMRI(coil_maps=coils, img_size=(2, *SIZE), noise_model=noise)
    return physics, dj.FastMRIMaskGenerator(SIZE, acceleration=4, seed=seed)


# %%
# Where can the noise go?
# -----------------------
# Names come from ``named_modules()``. A pattern that fits nothing is refused, with candidates.


def network():
    torch.manual_seed(0)
    denoiser = dj.UnrolledDnCNN(2, depth=4, width=16)  # zero at first: VarNet subtracts it
    return dinv.models.VarNet(denoiser, num_cascades=4, mode="e2e-varnet")


try:
    dj.jitter(network(), 0.1, at="cascades.*")
except ValueError as error:
    print(error)


def trained(jitter=0.0, **options):
    model = network()
    if jitter:
        dj.jitter(model, jitter, at="backbone_net.*.denoiser")
    physics, masks = acquisition(seed=0)
    options |= dict(epochs=8, lr=5e-3, ema=0.99, physics_generator=masks)
    return dj.fit(model, physics, train, **options)


# %%
# Every trainer takes any network, so this one, too: every second batch is attacked by one step, the
# others get more noise in their measurements.

ball = dj.L2Ball(2.0, relative_to="noise")
one_step = dj.FrankWolfeAttack(ball, steps=1, keep="last")
models = {
    "MSE": trained(),
    "jittered": trained(0.1),
    "attacks, noise": trained(trainer=dj.RobustTrainer, attack=one_step, sigma=2 * NOISE),
}

# %%
# Clean and attacked
# ------------------
# The attack perturbs all coils together, by twice the norm of the noise, on the sampled lines of
# k-space alone. Random perturbations of the same norm are the measure for it. Here the noise alone
# gains little under attack and costs accuracy; attacks and noise gain more and cost less.

physics, masks = acquisition(seed=1)
x = torch.stack([sample["x"] for sample in test])
physics.update(**masks.step(len(x)))
y = physics(x)
psnr = dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)

attacks = {"random": dj.RandomAttack(ball), "attacked": dj.FrankWolfeAttack(ball, steps=10)}
panels = {"truth": x, "zero-filled": physics.A_adjoint(y)}
for name, model in models.items():
    deltas = {"clean": 0} | {k: attack(model, x, y, physics) for k, attack in attacks.items()}
    for kind, delta in deltas.items():
        with torch.no_grad():
            image = model(y + delta, physics)
        print(f"{name:16s}{kind:10s}{psnr(image, x).mean():6.2f} dB")
        if kind != "random":
            panels[f"{name}\n{kind}"] = image

figure, axes = plt.subplots(2, 4, figsize=(10, 6), layout="constrained")
for ax, (name, image) in zip(axes.T.flat, panels.items()):
    value = "" if name == "truth" else f"\n{psnr(image[3:4], x[3:4]).item():.1f} dB"
    ax.imshow(image[3].norm(dim=0), cmap="gray", vmin=0, vmax=1)
    ax.set_title(name + value, fontsize=14)
    ax.set_axis_off()
plt.show()
