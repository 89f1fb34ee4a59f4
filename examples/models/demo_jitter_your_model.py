r"""
Jitter your own model
=====================

One line turns an unrolled model that you have into a jittered one. The model stays what it is: the
same class, the same weights, the same names in its checkpoints, and in evaluation the same output.
Three models in the style of deepinv's own gallery, for the super-resolution of brain slices: PGD
with a denoiser and a step size of its own for each iteration, FISTA, and half-quadratic splitting
(HQS).
"""

# %%
# Three models, as deepinv builds them
# ------------------------------------
# There is nothing of this package here.

import copy

import deepinv as dinv
import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

ITERATIONS = 4


def denoiser():
    return dinv.models.DnCNN(1, 1, depth=4, nf=24, pretrained=None)


def pgd_own_prior_per_iteration():
    return dinv.optim.PGD(
        data_fidelity=dinv.optim.L2(),
        prior=[dinv.optim.PnP(denoiser()) for _ in range(ITERATIONS)],
        stepsize=[1.0] * ITERATIONS,
        max_iter=ITERATIONS,
        unfold=True,
        trainable_params=["stepsize"],
    )


def fista():
    return dinv.optim.FISTA(
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.PnP(denoiser()),
        stepsize=1.0,
        max_iter=ITERATIONS,
        unfold=True,
        trainable_params=["stepsize"],
    )


def hqs():
    return dinv.optim.HQS(
        data_fidelity=dinv.optim.L2(),
        prior=dinv.optim.PnP(denoiser()),
        stepsize=5.0,
        max_iter=ITERATIONS,
        unfold=True,
        trainable_params=["stepsize"],
    )


# %%
# The one line
# ------------
# ``dj.jitter`` works in place and returns the model; ``dj.unjitter`` takes the noise away again.

import deepinv_jitter as dj

torch.manual_seed(0)
model = pgd_own_prior_per_iteration()
jittered = dj.jitter(copy.deepcopy(model), sigma=0.05)

physics = dinv.physics.Downsampling((1, 48, 48), filter="gaussian", factor=2)
y = physics(torch.rand(1, 1, 48, 48))
with torch.no_grad():
    print("names in the checkpoint:", list(model.state_dict()) == list(jittered.state_dict()))
    print("same output in eval():  ", torch.equal(model.eval()(y, physics), jittered.eval()(y, physics)))
    print("same output in train(): ", torch.equal(model.train()(y, physics), jittered.train()(y, physics)))

# %%
# Training
# --------
# ``dj.JitterTrainer`` is deepinv's trainer, with evaluation free of noise and an exact resume; a
# plain ``deepinv.Trainer`` trains a jittered model too.

brain = dict(img_size=(48, 48), resolution=4)


def magnitude(split, **kwargs):
    slices = dj.BrainSliceDataset(split, **brain, **kwargs)
    return torch.stack([slices[i]["x"][:1] for i in range(len(slices))])


train, test = magnitude("train", contrast=True, copies=2), magnitude("test", spacing=2)


def camera(seed):
    noise = dinv.physics.GaussianNoise(0.02, rng=torch.Generator().manual_seed(seed))
    return dinv.physics.Downsampling(
        (1, 48, 48), filter="gaussian", factor=2, noise_model=noise
    )


def fit(model, epochs=6):
    torch.manual_seed(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return dj.JitterTrainer(
        model,
        camera(seed=0),
        optimizer,
        DataLoader(
            dinv.datasets.TensorDataset(x=train, use_dict_output=True),
            batch_size=8,
            shuffle=True,
        ),
        epochs=epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        online_measurements=True,
        grad_clip=1.0,
        device="cpu",
        save_path=None,
        verbose=False,
        show_progress_bar=False,
    ).train()


# %%
# Each of the three, with and without the line.

physics = camera(seed=1)
y = physics(test)
attack = dj.APGDAttack(dj.L2Ball(1.0, relative_to="noise"), steps=20)
psnr = dinv.metric.PSNR()

bicubic = torch.nn.functional.interpolate(y, scale_factor=2, mode="bicubic")
print(f"bicubic {psnr(bicubic, test).mean():6.2f} dB")
outputs, rows = {}, []
for build in (pgd_own_prior_per_iteration, fista, hqs):
    torch.manual_seed(0)
    model = build()
    for name, sigma in ((build.__name__, 0.0), (f"{build.__name__}, jittered", 0.01)):
        trained = fit(dj.jitter(copy.deepcopy(model), sigma)).eval()
        delta = attack(trained, test, y, physics)
        with torch.no_grad():
            outputs[name] = trained(y, physics)
            attacked = trained(y + delta, physics)
        clean, worst = (psnr(x, test).mean() for x in (outputs[name], attacked))
        print(f"{name:40s} clean {clean:6.2f}   attacked {worst:6.2f} dB")
