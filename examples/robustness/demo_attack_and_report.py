r"""
Attack three networks, and report
=================================

Three proximal gradient networks for brain MRI, alike but for their training: with the mean squared
error (MSE), with SPGD jittering, and with our recipe, attacks on every second batch and noise on
the others (:class:`deepinv_jitter.RobustTrainer`). All are attacked on the same slices and
measurements: perturbations of k-space, on measured entries only, that do as much harm as their size
allows. The report compares them with random perturbations of the same size, says where an attack
should not be trusted, and tells with intervals which network is better: a
:class:`deepinv_jitter.RobustnessComparison` of one :class:`deepinv_jitter.RobustnessReport` each.

Why one needs it: a random perturbation as large as the noise costs a decibel, the worst one ten.
The recipe takes some three of them back for 0.8 dB without an attack, jittering half a decibel for
0.5 dB. One network per training is an example, not a finding; and the few steps of the attack below
are a lower bound, beyond which :class:`deepinv_jitter.ConvergedAttack` finds more.

The networks come with the package, see :func:`deepinv_jitter.demo_network`.
"""

# %%
# The networks and the measurements
# ---------------------------------

import deepinv as dinv
import matplotlib.pyplot as plt
import torch

import deepinv_jitter as dj

models = {
    "MSE": dj.demo_network("mri_mse"),
    "SPGD jittering": dj.demo_network("mri_jittered"),
    "noise and attacks": dj.demo_network("mri_robust"),
}

size = (160, 128)
data = dj.BrainSliceDataset("test", img_size=size)
x = torch.stack([data[int(i)]["x"] for i in torch.linspace(0, len(data) - 1, 6)])
noise = dinv.physics.GaussianNoise(0.05, rng=torch.Generator().manual_seed(1))
mask = dj.FastMRIMaskGenerator(size, acceleration=4, seed=1).step(1)["mask"]
physics = dj.SingleCoilMRI(mask, img_size=size, noise_model=noise)
y = physics(x)

# %%
# The report
# ----------
# Radii are given relative to the norm of the measurement noise: at 1, the perturbation is as large
# as the noise that is there anyway. A lesion, not in the training data, is the shift. The flag
# ``not_converged`` says that the worst case is worse still: with more steps it is found.

attack = dj.APGDAttack(dj.L2Ball(1.0, relative_to="noise"), steps=12)
comparison = dj.evaluate_robustness(
    models,
    [{"x": x, "y": y}],
    physics,
    attacks=attack,
    epsilons=[0.5, 1.0],
    metrics={"PSNR": dinv.metric.PSNR(complex_abs=True, max_pixel=1.0)},
    shifts={"lesion": dj.Lesion(radius=4, contrast=0.3)},
    draws=2,
    verbose=False,
)
print(comparison.table(compare_to="MSE"))

# %%
# The report of one network says more: the worst sample, the cost of the attack.

print(comparison.reports["MSE"])

# %%
# Accuracy against the size of the perturbation, worst case and random.

comparison.plot()

# %%
# One slice under attack
# ----------------------
# Each network under its own worst case, of the norm of the noise; below, the place where all
# together err most.

# sphinx_gallery_thumbnail_path = '_static/brain_under_attack.png'

comparison.images()

# %%
# The perturbations themselves, where they are added, in k-space, and as the image
# :math:`A^\top\delta` that they amount to.

k = slice(len(x) // 2, len(x) // 2 + 1)
figure, axes = plt.subplots(2, 3, figsize=(7.5, 6), layout="constrained")
for column, (name, model) in zip(axes.T, models.items()):
    delta = attack(model, x[k], y[k], physics)
    k_space, image = delta[0].norm(dim=0), physics.A_adjoint(delta)[0].norm(dim=0)
    column[0].imshow(k_space, cmap="viridis")
    column[0].set_title(f"{name}:\nin k-space", fontsize=13)
    column[1].imshow(image, cmap="inferno", vmin=0, vmax=0.25)
    column[1].set_title("as an image, 0 to 0.25", fontsize=13)
for ax in axes.flat:
    ax.set_axis_off()
plt.show()
