r"""
Self-supervised training with jittering
=======================================

No ground truth is needed: any of deepinv's losses trains a jittered model. Here the network sees
only noisy, 4x accelerated k-space of brain slices. Splitting hides a part of the measurements from
the network and asks it to predict them; jittering perturbs the gradient steps as always.
"""

# %%
# Measurements alone
# ------------------
# Slices are measured once. The data set holds the measurements and the masks, no truth.

import deepinv as dinv
import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

import deepinv_jitter as dj

SIZE = (48, 48)
brain = dict(img_size=SIZE, resolution=4)


def measured(split, seed, **kwargs):
    data = dj.BrainSliceDataset(split, **brain, **kwargs)
    x = torch.stack([sample["x"] for sample in data])
    noise = dinv.physics.GaussianNoise(0.03, rng=torch.Generator().manual_seed(seed))
    physics = dj.SingleCoilMRI(img_size=SIZE, noise_model=noise)
    params = dj.FastMRIMaskGenerator(SIZE, acceleration=4, seed=seed).step(len(x))
    return x, physics(x, **params), params, physics


x_train, y_train, params, physics = measured("train", 0, contrast=True)
x_test, y_test, test_params, test_physics = measured("test", 1, spacing=2)
data = dinv.datasets.TensorDataset(y=y_train, params=params, use_dict_output=True)

# %%
# Three trainings
# ---------------
# Splitting without and with jittering, and MSE training with the truth, which is out of reach in
# practice, for comparison. The trainer is the same; only its losses differ.


def fit(data, loss, jitter=None, epochs=15):
    torch.manual_seed(0)
    network = dj.UnrolledDnCNN(2, depth=4, width=24, residual=True)
    model = dj.UnfoldedPGD(network, stepsize=1.0, max_iter=3, jitter=jitter)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    dj.JitterTrainer(
        model,
        physics,
        optimizer,
        DataLoader(data, batch_size=8, shuffle=True),
        losses=loss,
        metrics=[],
        epochs=epochs,
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs),
        grad_clip=1.0,
        device="cpu",
        save_path=None,
        verbose=False,
        show_progress_bar=False,
    ).train()
    return model  # train() returns it inside the wrapper that splits


def splitting():
    masks = dinv.physics.generator.GaussianSplittingMaskGenerator(
        (2, *SIZE), split_ratio=0.6, rng=torch.Generator().manual_seed(2)
    )
    return dinv.loss.SplittingLoss(mask_generator=masks, eval_split_input=False)


with_truth = dinv.datasets.TensorDataset(
    x=x_train, y=y_train, params=params, use_dict_output=True
)
models = {
    "splitting": fit(data, splitting()),
    "splitting, jittered": fit(data, splitting(), jitter=0.02),
    "with the truth": fit(with_truth, dinv.loss.SupLoss()),
}

# %%
# Results
# -------
# The truth serves for the test alone.

test_physics.update(**test_params)
attack = dj.PowerAttack(dj.L2Ball(0.5, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)

outputs = {"zero-filled": test_physics.A_adjoint(y_test)}
print(f"{'PSNR (dB)':22s}{'clean':>8s}{'attacked':>10s}")
for name, model in models.items():
    model.eval()
    delta = attack(model, x_test, y_test, test_physics)
    with torch.no_grad():
        outputs[name] = model(y_test, test_physics)
        attacked = model(y_test + delta, test_physics)
    clean, worst = (psnr(x, x_test).mean() for x in (outputs[name], attacked))
    print(f"{name:22s}{clean:8.2f}{worst:10.2f}")

figure, axes = plt.subplots(1, 5, figsize=(11, 2.9), layout="constrained")
for ax, (name, image) in zip(axes, ({"truth": x_test} | outputs).items()):
    value = (
        f"\n{psnr(image[3:4], x_test[3:4]).item():.1f} dB" if name in outputs else ""
    )
    ax.imshow(image[3].norm(dim=0), cmap="gray", vmin=0, vmax=1)
    ax.set_title(name + value, fontsize=10)
    ax.set_axis_off()
plt.show()
