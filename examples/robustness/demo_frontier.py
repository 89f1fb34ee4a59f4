r"""
What robustness costs: choosing a scheme
========================================

Every scheme has a knob, which trades accuracy on clean measurements for accuracy under attack. So
schemes are compared as curves: accuracy to the right, robustness upwards. What is up and to the
right of another is better at both; along the outer edge, the frontier, you choose.
"""

# %%
# A camera in motion
# ------------------
# Crops of photographs that scikit-image ships, at half the resolution, blurred along the diagonal
# over seven pixels; the crops of the test are of another photograph.

import deepinv as dinv
import matplotlib.pyplot as plt
import skimage.data
import torch
from torch.nn.functional import interpolate

import deepinv_jitter as dj


def crops(name, size=48, stride=32):
    pixels = torch.from_numpy(getattr(skimage.data, name)()[..., :3] / 255).float()
    image = interpolate(
        pixels.movedim(-1, 0)[None], scale_factor=0.5, mode="bilinear", antialias=True
    )
    windows = image[0].unfold(1, size, stride).unfold(2, size, stride)
    return windows.permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)


train = torch.cat([crops(name) for name in ("astronaut", "coffee", "rocket")])
data = dinv.datasets.TensorDataset(x=train, use_dict_output=True)
x = crops("chelsea")[::2]


def camera(seed):
    noise = dinv.physics.GaussianNoise(0.01, rng=torch.Generator().manual_seed(seed))
    return dinv.physics.Blur(torch.eye(7)[None, None] / 7, padding="reflect", noise_model=noise)


# %%
# Three schemes, and the turns of each knob
# -----------------------------------------
# Noise in every iteration, noise on the measurements, or a step of an attack on every second batch
# and noise on the others: there the knob is the radius, in norms of the measurements' own noise.


def trained(jitter=None, **options):
    torch.manual_seed(0)
    network = dj.UnrolledDnCNN(3, depth=4, width=16, residual=True)
    model = dj.UnfoldedPGD(network, max_iter=4, jitter=jitter)
    return dj.fit(model, camera(seed=0), data, epochs=6, lr=4e-3, ema=0.99, **options)


def mixed(radius):
    attack = dj.FrankWolfeAttack(dj.L2Ball(radius, relative_to="noise"), steps=1, keep="last")
    return trained(trainer=dj.RobustTrainer, attack=attack, sigma=0.05)


schemes = {
    "MSE training": (trained, (0,)),
    "jitter, σ": (trained, (0.02, 0.05, 0.1)),
    "input noise, σ": (lambda s: trained(trainer=dj.InputJitterTrainer, sigma=s), (0.05, 0.1)),
    "attacks and noise, radius": (mixed, (0.5, 1, 2)),
}

# %%
# The frontier
# ------------
# All are attacked by twice the norm of the noise; ten steps are a lower bound of the harm. Here
# attacks and noise are the frontier: 2.3 dB under attack for 0.2 dB. From another seed they cost
# more, 1.6 dB for 0.5 dB, and jitter of 0.05 lies on the frontier too, 1.4 dB for 0.2 dB, in three
# quarters of the time. One seed is an example: decide on your own problem, by several.

physics = camera(seed=1)
y = physics(x)
attack = dj.FrankWolfeAttack(dj.L2Ball(2.0, relative_to="noise"), steps=10)
psnr = dinv.metric.PSNR()

plt.rcParams["font.size"] = 14
figure, ax = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
for (scheme, (training, knobs)), marker in zip(schemes.items(), "*osD"):
    curve = []
    for knob in knobs:
        model = training(knob)
        y_attacked = y + attack(model, x, y, physics)
        with torch.no_grad():
            curve.append([psnr(model(v, physics), x).mean().item() for v in (y, y_attacked)])
        print(f"{scheme:26s}{knob:<6g}clean %.2f dB, attacked %.2f dB" % tuple(curve[-1]))
        ax.annotate(knob or "", curve[-1], xytext=(9, 7), textcoords="offset points")
    size = 24 if marker == "*" else 12
    ax.plot(*zip(*curve), marker + "-", lw=3, ms=size, label=scheme)
ax.set(xlabel="PSNR, clean [dB]", ylabel="PSNR, attacked [dB]")
ax.margins(0.1)
ax.legend(frameon=False, loc="lower left")
plt.show()
