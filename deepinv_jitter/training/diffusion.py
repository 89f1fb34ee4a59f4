r"""The trainer of the conditional DDPM."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from deepinv.loss import Loss

from ..models.diffusion import T_END, T_START
from .jitter import JitterTrainer


class DenoisingLoss(Loss):
    r"""
    The loss that a :class:`ConditionalDDPM` learns from: denoising at a random time.

    .. math::
        \mathbb{E}_{t, n} \frac{1}{N} \frac{\sigma_t^2 + s^2}{\sigma_t^2 s^2}
        \left\| D(x + \sigma_t n; \sigma_t, A^\top y) - x \right\|_2^2, \qquad
        t \sim \mathcal{U}(10^{-3}, 1), \quad n \sim \mathcal{N}(0, I).

    This is the squared error of the U-Net's output (Karras et al., 2022), for images of :math:`N`
    entries.

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
    :raises NotImplementedError: in ``train``, on several processes of ``torch.distributed``: the
        loss is not a function of the model's output, whose gradients are averaged.

    The other parameters are those of :class:`JitterTrainer`.

    |sep|

    :Examples:

    >>> import deepinv as dinv, deepinv_jitter as dj
    >>> unet = dinv.models.NCSNpp(
    ...     img_resolution=16, in_channels=2, out_channels=1, model_channels=32, channel_mult=(1,),
    ...     num_blocks=1, attn_resolutions=(), pretrained=None)
    >>> physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.1))
    >>> sections = dj.ReflectivityDataset(4, img_size=(16, 16), thickness=4)
    >>> model = dj.ConditionalDDPM(unet, steps=2)
    >>> model = dj.fit(model, physics, sections, epochs=1, trainer=dj.DDPMTrainer)
    """

    losses: Loss | list[Loss] = field(default_factory=DenoisingLoss)

    def model_inference(self, y, physics, x=None, train=True, **kwargs) -> torch.Tensor:
        """The reconstruction, in training :math:`A^\top y`; see :class:`deepinv.Trainer`."""
        if not train:
            return super().model_inference(y, physics, x, train=False, **kwargs)
        self.model.train(not self._validation.looks)
        return physics.A_adjoint(y)
