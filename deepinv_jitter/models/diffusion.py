r"""A conditional DDPM that samples by DDIM steps, a baseline of Table 5."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from deepinv.models import Reconstructor
from deepinv.physics import Physics
from deepinv.sampling import DDIMSolver, VariancePreservingDiffusion
from torch import nn

from .. import checks

# The noise level of t = 1 leaves nothing of the image; that of the last step is invisible
T_START, T_END = 1.0, 1e-3


class ConditionalDDPM(Reconstructor):
    r"""
    Denoising diffusion model conditioned on :math:`A^\top y`, trained as a DDPM and sampled by DDIM
    steps, with the host's U-Nets and sampler.

    Ho et al. (NeurIPS 2020) with the condition stacked to the input, as in Saharia et al. (2022).
    The noisy image is :math:`x + \sigma n`; the denoiser is preconditioned after Karras et al.
    (NeurIPS 2022), with :math:`s` the standard deviation of the images,

    .. math::
        D(x_\sigma; \sigma, c) = \frac{s^2}{\sigma^2 + s^2} x_\sigma +
        \frac{\sigma s}{\sqrt{\sigma^2 + s^2}}\, U_\theta\Big(
        \frac{x_\sigma}{\sqrt{\sigma^2 + s^2}}, \frac{c}{s}; \tfrac14 \log\sigma \Big),

    and sampling follows deepinv's variance-preserving diffusion by its DDIM solver (Song et al.,
    ICLR 2021) from one fixed noise image, so that the reconstruction is a deterministic and
    differentiable function of the measurements, which attacks can follow from end to end. Train it
    with :class:`DDPMTrainer`. Single precision only, like the host's sampler.

    :param torch.nn.Module unet: :math:`U_\theta`, a deepinv diffusion U-Net with ``forward_unet``,
        such as :class:`deepinv.models.ADMUNet` or :class:`deepinv.models.NCSNpp`, of twice as many
        input as output channels.
    :param int steps: evaluations of the U-Net per reconstruction, at least 1. Default: 10.
    :param float data_std: :math:`s`, standard deviation of the entries of the images, positive.
        Default: 0.3.
    :param int seed: seed of the noise image, the same for every sample, from 0. Default: 0.
    :raises TypeError: if ``unet`` has no ``forward_unet``, or a number is of the wrong type.
    :raises ValueError: if a number is out of range.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> unet = dinv.models.NCSNpp(
    ...     img_resolution=16, in_channels=4, out_channels=2, model_channels=32, channel_mult=(1,),
    ...     num_blocks=1, attn_resolutions=(), pretrained=None)
    >>> model = dj.ConditionalDDPM(unet, steps=3).eval()
    >>> physics = dj.SingleCoilMRI(torch.ones(16, 16), img_size=(16, 16))
    >>> model(torch.zeros(1, 2, 16, 16), physics).shape
    torch.Size([1, 2, 16, 16])
    """

    def __init__(self, unet: nn.Module, *, steps: int = 10, data_std: float = 0.3, seed: int = 0):
        super().__init__()
        if not hasattr(unet, "forward_unet"):
            raise TypeError(
                "unet must be a deepinv diffusion U-Net with forward_unet, such as ADMUNet, got "
                f"{type(unet).__name__}."
            )
        # To torch's type of a module forward_unet is unknown
        self.unet: Any = unet
        self.steps = checks.whole("steps", steps, 1)
        self.data_std = checks.real("data_std", data_std, 1e-12)
        self.seed = checks.seed("seed", seed)
        self.solver = DDIMSolver(timesteps=torch.linspace(T_START, T_END, self.steps + 1))

    def denoise(
        self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor
    ) -> torch.Tensor:
        r"""
        :math:`D(x_\sigma; \sigma, c)`.

        :param torch.Tensor x: noisy image :math:`x_\sigma`, shape `(B, C, H, W)`.
        :param torch.Tensor sigma: noise level, of any shape with one or `B` entries.
        :param torch.Tensor condition: :math:`c = A^\top y`, shape `(B, C, H, W)`.
        :return: (:class:`torch.Tensor`) estimate of the image, shape `(B, C, H, W)`.
        """
        sigma = sigma.reshape(-1, 1, 1, 1).to(x).expand(len(x), 1, 1, 1)
        s, total = self.data_std, (sigma**2 + self.data_std**2).sqrt()
        u = self.unet.forward_unet(
            torch.cat([x / total, condition / s], dim=1), sigma.flatten().log() / 4
        )
        return (s / total) ** 2 * x + sigma * s / total * u

    def forward(self, y: torch.Tensor, physics: Physics, **kwargs) -> torch.Tensor:
        r"""
        Sample an image.

        :param torch.Tensor y: measurements, shape `(B, ...)`.
        :param deepinv.physics.Physics physics: forward operator :math:`A`.
        :return: (:class:`torch.Tensor`) image, shape of :math:`A^\top y`.
        """
        condition = physics.A_adjoint(y)
        diffusion = self.diffusion(condition)
        rng = torch.Generator().manual_seed(self.seed)
        noise = torch.randn(condition.shape[1:], generator=rng, device="cpu").to(condition)
        start = diffusion.sigma_t(T_START) * diffusion.scale_t(T_START)
        x = (start * noise).expand_as(condition)
        times = self.solver.timesteps.to(condition.device)
        for now, then in pairwise(times):
            # One step of the solver: its sample() would stop gradients
            x, _ = self.solver.step(diffusion, now, then, x, condition)
        return (x / diffusion.scale_t(times[-1])).to(condition.dtype)

    def diffusion(self, like: torch.Tensor) -> VariancePreservingDiffusion:
        r"""
        The host's diffusion with this denoiser.

        :param torch.Tensor like: a tensor on the device to use.
        :return: (:class:`deepinv.sampling.VariancePreservingDiffusion`) the diffusion.
        """
        return VariancePreservingDiffusion(
            denoiser=self.denoise, minus_one_one=False, dtype=torch.float32, device=like.device
        )
