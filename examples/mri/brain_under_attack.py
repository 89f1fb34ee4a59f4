r"""The picture of the start page: MSE training, and noise with attacks, on two demo networks."""

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

networks = {
    "MSE training": dj.demo_network("mri_mse"),
    "noise and attacks\n(RobustTrainer)": dj.demo_network("mri_robust"),
}
size = (160, 128)  # pixels of 1 mm
x = dj.BrainSliceDataset("test", img_size=size, spacing=8)[0]["x"][None]
noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(0))
physics = dj.SingleCoilMRI(img_size=size, noise_model=noise)
y = physics(x, **dj.FastMRIMaskGenerator(size, acceleration=4, seed=0).step(1))
attack = dj.ConvergedAttack.standard(dj.L2Ball(1.0, relative_to="noise"))

psnr = dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)
figure, axes = plt.subplots(2, 4, figsize=(8.4, 5.6), layout="constrained")
for row, (name, model) in zip(axes, networks.items()):
    delta = attack(model, x, y, physics)
    with torch.no_grad():
        clean, attacked = model(y, physics), model(y + delta, physics)
    titles = [
        f"{k}, {psnr(z, x).item():.1f} dB"
        for k, z in {"clean": clean, "attacked": attacked}.items()
    ]
    error = (attacked - x).norm(dim=1, keepdim=True)
    for ax, image, title in zip(row, (x, clean, attacked), ["truth", *titles]):
        ax.imshow(image[0].norm(dim=0), cmap="gray", vmin=0, vmax=1)
        ax.set_title(title, fontsize=10)
    row[3].imshow(error[0, 0], cmap="inferno", vmin=0, vmax=0.6)
    row[3].set_title("error, 0 to 0.6", fontsize=10)
    row[0].set_ylabel(name, fontsize=10)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
figure.savefig("brain_under_attack.png", dpi=110)
