r"""What the paper's Table 5 compares with: spectral normalisation, and a conditional DDPM."""

from __future__ import annotations

from dataclasses import dataclass, field
from numbers import Integral, Real

import torch
from deepinv.loss import Loss
from deepinv.models import Reconstructor
from deepinv.physics import Physics
from deepinv.sampling import DDIMSolver, VariancePreservingDiffusion
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from . import checks
from .trainers import JitterTrainer

# The largest noise level, that of t = 1, leaves nothing of the image; the smallest is not seen
T_START, T_END = 1.0, 1e-3
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def spectral_normalize(module: nn.Module, *, n_power_iterations: int = 1) -> nn.Module:
    r"""
    Divide the weight of every convolution and linear layer by its spectral norm, in place.

    Lipschitz regularisation by spectral normalisation (Miyato et al., ICLR 2018), as in the paper's
    Table 5, by torch's own parametrisation: the norm is that of the weight as a matrix, one row per
    output channel, estimated by a power iteration that goes on in training mode. Layers that are
    normalised already stay as they are. A weight of zeros has no direction and is initialised anew
    first, so that an :class:`UnrolledDnCNN` no longer starts as the plain algorithm.

    Normalisation layers are not bounded by it, nor is the data step of an unrolled network.

    :param torch.nn.Module module: a network, or any model that holds one.
    :param int n_power_iterations: power iterations for each forward pass in training mode, at least
        1. Default: 1.
    :return: (:class:`torch.nn.Module`) ``module``.
    :raises TypeError: if ``module`` is no module or the number is not whole.
    :raises ValueError: if the number is below 1, or the module has no such layer.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> network = dj.spectral_normalize(dj.UnrolledDnCNN(1, depth=3, width=8))
    >>> weight = network.eval().body[0].weight
    >>> bool(torch.linalg.matrix_norm(weight.flatten(1), 2) < 1.1)
    True
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module must be a torch.nn.Module, got {type(module).__name__}."
        )
    iterations = checks.number("n_power_iterations", n_power_iterations, Integral, 1)
    layers = [m for m in module.modules() if isinstance(m, LAYERS)]
    if not layers:
        raise ValueError(
            "module must hold a convolution or a linear layer, got "
            f"{type(module).__name__} without one."
        )
    for layer in layers:
        if is_parametrized(layer, "weight"):
            continue
        if not layer.weight.any():
            layer.reset_parameters()
        spectral_norm(layer, n_power_iterations=iterations)
    return module


class ConditionalDDPM(Reconstructor):
    r"""
    Denoising diffusion model conditioned on :math:`A^\top y`, by the host's U-Nets and sampler.

    Ho et al. (NeurIPS 2020) with the condition stacked to the input, as in Saharia et al. (2022).
    The noisy image is :math:`x + \sigma n`; the denoiser is preconditioned after Karras et al.
    (NeurIPS 2022), with :math:`s` the standard deviation of the images,

    .. math::
        D(x_\sigma; \sigma, c) = \frac{s^2}{\sigma^2 + s^2} x_\sigma +
        \frac{\sigma s}{\sqrt{\sigma^2 + s^2}}\, U_\theta\Big(
        \frac{x_\sigma}{\sqrt{\sigma^2 + s^2}}, \frac{c}{s}; \tfrac14 \log\sigma \Big),

    and sampling follows deepinv's variance-preserving diffusion by its DDIM solver (Song et al.,
    ICLR 2021) from one fixed noise image: the reconstruction is a deterministic and differentiable
    function of the measurements, so that attacks see all of it. Trained with :class:`DDPMTrainer`.
    In single precision alone, as the host's sampler.

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

    def __init__(
        self, unet: nn.Module, *, steps: int = 10, data_std: float = 0.3, seed: int = 0
    ):
        super().__init__()
        if not hasattr(unet, "forward_unet"):
            raise TypeError(
                "unet must be a deepinv diffusion U-Net with forward_unet, such as ADMUNet, got "
                f"{type(unet).__name__}."
            )
        self.unet = unet
        self.steps = checks.number("steps", steps, Integral, 1)
        self.data_std = checks.number("data_std", data_std, Real, 1e-12)
        self.seed = checks.number("seed", seed, Integral, 0)
        self.solver = DDIMSolver(
            timesteps=torch.linspace(T_START, T_END, self.steps + 1)
        )

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
        noise = torch.randn(condition.shape[1:], generator=rng).to(condition)
        start = diffusion.sigma_t(T_START) * diffusion.scale_t(T_START)
        x = (start * noise).expand_as(condition)
        times = self.solver.timesteps.to(condition.device)
        for now, then in zip(times[:-1], times[1:], strict=True):
            # One step of the solver: its sample() would stop gradients
            x, _ = self.solver.step(diffusion, now, then, x, condition)
        return (x / diffusion.scale_t(times[-1])).to(condition.dtype)

    def diffusion(self, like: torch.Tensor) -> VariancePreservingDiffusion:
        r"""
        The host's diffusion with this denoiser.

        :param torch.Tensor like: tells the device.
        :return: (:class:`deepinv.sampling.VariancePreservingDiffusion`) the diffusion.
        """
        return VariancePreservingDiffusion(
            denoiser=_Bound(self.denoise),
            minus_one_one=False,
            dtype=torch.float32,
            device=like.device,
        )


class DenoisingLoss(Loss):
    r"""
    The loss that a :class:`ConditionalDDPM` learns from: denoising at a random time,

    .. math::
        \mathbb{E}_{t, n} \frac{1}{N} \frac{\sigma_t^2 + s^2}{\sigma_t^2 s^2}
        \left\| D(x + \sigma_t n; \sigma_t, A^\top y) - x \right\|_2^2, \qquad
        t \sim \mathcal{U}(10^{-3}, 1), \quad n \sim \mathcal{N}(0, I),

    the squared error of the U-Net's output (Karras et al., 2022), for images of :math:`N` entries.

    :param torch.Generator, None generator: source of the randomness. Default: ``None``, the global
        generator of the device.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> dj.DenoisingLoss().name
    'denoising'
    """

    def __init__(self, generator: torch.Generator | None = None):
        super().__init__()
        self.name = "denoising"
        self.generator = generator

    def forward(self, x_net, x, y, physics, model, *args, **kwargs) -> torch.Tensor:
        """Loss of each sample, shape `(B,)`, see :class:`deepinv.loss.Loss`."""
        device = x.device if self.generator is None else self.generator.device

        def draw(function, shape) -> torch.Tensor:
            return function(shape, generator=self.generator, device=device).to(x)

        t = T_END + (T_START - T_END) * draw(torch.rand, (len(x), 1, 1, 1))
        sigma = model.diffusion(x).sigma_t(t).to(x)
        noisy = x + sigma * draw(torch.randn, x.shape)
        error = model.denoise(noisy, sigma, physics.A_adjoint(y)) - x
        weight = (sigma**2 + model.data_std**2) / (sigma * model.data_std) ** 2
        return (weight * error.square()).flatten(1).mean(1)


@dataclass
class DDPMTrainer(JitterTrainer):
    r"""
    Trainer for a :class:`ConditionalDDPM`: denoising in training, sampling in evaluation.

    All else is :class:`JitterTrainer`'s. In training no image is sampled; metrics on training
    batches would score :math:`A^\top y`.

    :param deepinv.loss.Loss, list losses: Default: :class:`DenoisingLoss`.
    :raises NotImplementedError: in ``train``, on several ranks of ``torch.distributed``: the loss
        is not a function of the model's output, whose gradients are averaged.

    The other parameters are those of :class:`JitterTrainer`.

    |sep|

    :Examples:

    >>> import torch, deepinv as dinv, deepinv_jitter as dj
    >>> unet = dinv.models.NCSNpp(
    ...     img_resolution=16, in_channels=2, out_channels=1, model_channels=32, channel_mult=(1,),
    ...     num_blocks=1, attn_resolutions=(), pretrained=None)
    >>> model = dj.ConditionalDDPM(unet, steps=2)
    >>> trainer = dj.DDPMTrainer(
    ...     model, dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1)),
    ...     torch.optim.Adam(model.parameters(), lr=1e-3),
    ...     torch.utils.data.DataLoader(dj.ReflectivityDataset(4, img_size=(16, 16), thickness=4)),
    ...     epochs=1, device="cpu", online_measurements=True, save_path=None, verbose=False)
    >>> model = trainer.train()
    """

    losses: Loss | list[Loss] = field(default_factory=DenoisingLoss)

    def model_inference(
        self,
        y: torch.Tensor,
        physics: Physics,
        x: torch.Tensor | None = None,
        train: bool = True,
        **kwargs,
    ) -> torch.Tensor:
        """The reconstruction, in training :math:`A^\top y`; see :class:`deepinv.Trainer`."""
        if not train:
            return super().model_inference(y, physics, x, train=False, **kwargs)
        self.model.train()
        return physics.A_adjoint(y)


class _Bound(nn.Module):
    """A function as the module that the host asks for, holding no weights of its own."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args) -> torch.Tensor:
        return self.function(*args)
