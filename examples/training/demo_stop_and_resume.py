r"""
Stop a training, and resume it
==============================

Trainings are stopped: by Ctrl-C, by a scheduler, by a power cut. All trainers of this package go on
as if nothing had happened, with the same batches and the same noise, to the same weights, bit for
bit. One script begins a run and continues it.
"""

# %%
# A script
# --------
# What matters are two arguments of the trainer: ``save_path``, the folder for the checkpoints, and
# ``ckpt_pretrained``, where :func:`deepinv_jitter.latest_checkpoint` gives the newest one of that
# folder, and ``None`` as long as there is none. The signal is that of a scheduler which wants its
# machine back, here amid a training pass.

import signal
import tempfile

import deepinv as dinv
import matplotlib.pyplot as plt
import torch
from torch.utils.data import DataLoader

import deepinv_jitter as dj


def script(folder, signal_at=None):
    torch.manual_seed(0)
    network = dj.UnrolledDnCNN(1, depth=4, width=16, residual=True)
    model = dj.UnfoldedPGD(network, max_iter=3, jitter=0.02)
    noise = dinv.physics.GaussianNoise(0.02, rng=torch.Generator().manual_seed(0))
    trainer = dj.JitterTrainer(
        model,
        dj.SeismicConvolution(noise_model=noise),
        torch.optim.Adam(model.parameters(), lr=2e-3),
        DataLoader(dj.ReflectivityDataset(32, img_size=(48, 48)), batch_size=4, shuffle=True),
        eval_dataloader=DataLoader(dj.ReflectivityDataset(8, img_size=(48, 48), seed=1), 8),
        metrics=dinv.metric.PSNR(max_pixel=2.0),
        epochs=10,
        online_measurements=True,
        save_path=folder,
        ckpt_pretrained=dj.latest_checkpoint(folder),
        verbose=False,
        show_progress_bar=False,
    )
    passes = []

    def scheduler(model, arguments):
        passes.append(model.training)
        if sum(passes) == signal_at:
            signal.raise_signal(signal.SIGTERM)

    model.register_forward_pre_hook(scheduler)
    return trainer.train()


# %%
# Without a stop
# --------------

folders = {name: tempfile.mkdtemp() for name in ("never stopped", "stopped and resumed")}
whole = script(folders["never stopped"])

# %%
# Stopped in the fifth epoch, and started again
# ---------------------------------------------
# The batch at hand is finished, a checkpoint written, and the script ended with the status that a
# scheduler expects.

try:
    script(folders["stopped and resumed"], signal_at=36)
except SystemExit as stop:
    print(f"exit status {stop.code}")

# %%
# The same script again:

resumed = script(folders["stopped and resumed"])
pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
print("the same weights, bit for bit:", all(torch.equal(a, b) for a, b in pairs))

# %%
# One history
# -----------
# :func:`deepinv_jitter.plot_history` reads the folders of runs. The curves lie upon each other, so
# the first is made wide and pale.

figure = dj.plot_history(folders)
for ax in figure.axes:
    ax.get_lines()[0].set(linewidth=8, alpha=0.4)
    ax.axvline(4.5, color="0.5", ls=":", lw=2)
    ax.annotate("signal", (4.6, ax.get_ylim()[1]), va="top", color="0.4")
plt.show()
