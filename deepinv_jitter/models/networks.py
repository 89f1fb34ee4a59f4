r"""The paper's network bodies :math:`f_\theta`, without algorithm and noise."""

from __future__ import annotations

import torch
from torch import nn

from .. import checks


class PointMLP(nn.Sequential):
    r"""
    Multilayer perceptron for points, the paper's network for 2-D point denoising (Appendix G).

    :param int features: dimension of a point. Default: 2.
    :param int hidden: width of the hidden layers. Default: 32.
    :param int layers: number of linear layers, at least 2. Default: 3.
    :param type[torch.nn.Module] activation: activation after every layer but the last. Default:
        :class:`torch.nn.ReLU`; a smooth one such as :class:`torch.nn.Softplus` satisfies
        Assumption 7.2.
    :raises TypeError: if an argument is of the wrong type; in the call, if ``x`` is not a tensor
        of real numbers.
    :raises ValueError: if there are fewer than 2 layers, or a number is below 1; in the call, if
        ``x`` is not of shape `(B, features)`.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> dj.PointMLP()(torch.zeros(200, 2)).shape
    torch.Size([200, 2])
    """

    def __init__(
        self,
        features: int = 2,
        hidden: int = 32,
        layers: int = 3,
        activation: type[nn.Module] = nn.ReLU,
    ):
        features = checks.whole("features", features, 1)
        hidden = checks.whole("hidden", hidden, 1)
        layers = checks.whole("layers", layers, 2)
        if not callable(activation) or isinstance(activation, nn.Module):
            raise TypeError(
                f"activation must be a class of modules, such as torch.nn.ReLU, got {activation!r}."
            )
        body = []
        for _ in range(layers - 2):
            body += [nn.Linear(hidden, hidden), activation()]
        super().__init__(
            nn.Linear(features, hidden), activation(), *body, nn.Linear(hidden, features)
        )
        self.features = features

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        r"""
        Apply the network.

        :param torch.Tensor x: points, shape `(B, features)`.
        :return: (:class:`torch.Tensor`) points, of the shape of ``x``.
        """
        checks.tensor("x", x, real=True)
        if x.shape[-1] != self.features:
            raise ValueError(f"x must have shape (B, {self.features}), got {tuple(x.shape)}.")
        return super().forward(x)


class UnrolledDnCNN(nn.Module):
    r"""
    DnCNN body with group normalisation: the paper's network for MRI and sections (Appendix G).

    ``depth`` convolutions of size 3x3, the inner ones followed by group normalisation, all but the
    last by a ReLU. The last one starts at zero, so that an untrained unrolled network is the plain
    algorithm: gradient descent on the data fidelity with a :class:`GradientPrior`, and, with
    ``residual=True``, with a :class:`ProximalPrior`.

    :param int channels: channels of the image: 1 for sections, 2 for complex images as real and
        imaginary part.
    :param int depth: number of convolutions, at least 3. The paper's: 8 for MRI, 5 for sections.
        Default: 8.
    :param int width: hidden channels. Default: 64.
    :param int groups: groups of the normalisation, a divisor of ``width``. Default: 4.
    :param bool residual: return ``x`` minus the body instead of the body. Default: ``False``.
    :param int condition_channels: channels of a second input, such as the measurements, which is
        stacked to the first. Default: 0, no second input.
    :raises TypeError: if a size is not a whole number.
    :raises ValueError: if ``depth`` is below 3, ``groups`` does not divide ``width``, or a number
        is out of range.

    |sep|

    :Examples:

    >>> import torch, deepinv_jitter as dj
    >>> dj.UnrolledDnCNN(2, depth=3, width=8)(torch.zeros(1, 2, 32, 32)).shape
    torch.Size([1, 2, 32, 32])
    >>> reads_y = dj.UnrolledDnCNN(1, depth=3, width=8, condition_channels=1)
    >>> reads_y(torch.zeros(1, 1, 32, 32), torch.zeros(1, 1, 32, 32)).shape
    torch.Size([1, 1, 32, 32])
    """

    def __init__(
        self,
        channels: int,
        depth: int = 8,
        width: int = 64,
        groups: int = 4,
        residual: bool = False,
        condition_channels: int = 0,
    ):
        super().__init__()
        channels = checks.whole("channels", channels, 1)
        depth = checks.whole("depth", depth, 3)
        width = checks.whole("width", width, 1)
        groups = checks.whole("groups", groups, 1)
        condition_channels = checks.whole("condition_channels", condition_channels, 0)
        if width % groups:
            raise ValueError(f"groups must divide width, got groups={groups} and width={width}.")
        inner = []
        for _ in range(depth - 2):
            inner += [
                nn.Conv2d(width, width, 3, padding=1, bias=False),
                nn.GroupNorm(groups, width),
                nn.ReLU(),
            ]
        last = nn.Conv2d(width, channels, 3, padding=1)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.body = nn.Sequential(
            nn.Conv2d(channels + condition_channels, width, 3, padding=1), nn.ReLU(), *inner, last
        )
        self.residual = residual
        self.channels, self.condition_channels = channels, condition_channels

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        r"""
        Apply the network.

        :param torch.Tensor x: image, shape `(B, channels, H, W)`.
        :param torch.Tensor, None y: second input, shape `(B, condition_channels, H, W)`.
        :return: (:class:`torch.Tensor`) image, of the shape of ``x``.
        :raises TypeError: if an input is not a tensor of real numbers.
        :raises ValueError: if a shape is another, ``y`` is missing, or the network takes none.
        """
        images = {"x": x} if y is None else {"x": x, "y": y}
        for name, image in images.items():
            checks.tensor(name, image, real=True)
        counts = [self.channels, *filter(None, [self.condition_channels])]
        got = [tuple(image.shape) for image in images.values()]
        if x.ndim != 4 or got != [(len(x), count, *x.shape[2:]) for count in counts]:
            raise ValueError(
                "the network takes images (B, C, H, W) of "
                f"{' and '.join(map(str, counts))} channels, got {' and '.join(map(str, got))}."
            )
        out = self.body(x if y is None else torch.cat([x, y], dim=1))
        return x - out if self.residual else out
