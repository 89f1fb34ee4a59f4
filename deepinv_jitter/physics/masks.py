r"""The fastMRI challenge's undersampling masks."""

from __future__ import annotations

import torch
from deepinv.physics.generator import PhysicsGenerator
from fastmri.data.subsample import EquispacedMaskFractionFunc, RandomMaskFunc

from .. import checks

MASK_KINDS = {"random": RandomMaskFunc, "equispaced": EquispacedMaskFractionFunc}


class FastMRIMaskGenerator(PhysicsGenerator):
    r"""
    The column masks of the fastMRI challenge, drawn by package ``fastmri`` itself.

    Both kinds sample the ``n_center = round(center_fraction * W)`` central columns. ``"random"``,
    ``RandomMaskFunc``, keeps each other column with the probability that makes
    :math:`W/\text{acceleration}` columns on average; ``"equispaced"``,
    ``EquispacedMaskFractionFunc``, keeps a comb of about as many at a random offset.

    One integer per mask is drawn from ``rng`` and seeds ``fastmri``; global generators are neither
    read nor moved. Without ``rng``, the host's generators all share one constant seed, so training
    and test masks coincide: here ``rng`` or ``seed`` must be given.

    :param tuple img_size: image size, `(H, W)` or `(C, H, W)`.
    :param int acceleration: acceleration factor, at least 1. Default: 4.
    :param float center_fraction: fraction of columns sampled at the centre, in (0, 1). Default:
        0.08 for an acceleration below 8, else 0.04, as in the challenge.
    :param str kind: ``"random"`` or ``"equispaced"``. Default: ``"random"``.
    :param torch.Generator rng: source of the randomness, on ``device``.
    :param int seed: seed of a new source, instead of ``rng``.
    :param torch.device, str device: device of the masks. Default: ``"cpu"``.
    :raises TypeError: if an argument is of the wrong type.
    :raises ValueError: if an argument is out of range, not exactly one of ``rng`` and ``seed`` is
        given, or the centre takes none or all of the columns.

    |sep|

    :Examples:

    >>> import deepinv_jitter as dj
    >>> generator = dj.FastMRIMaskGenerator((1, 50), acceleration=4, seed=0)
    >>> mask = generator.step(batch_size=2)["mask"]
    >>> mask.shape
    torch.Size([2, 1, 1, 50])
    >>> (mask == generator.step(batch_size=2, seed=0)["mask"]).all()
    tensor(True)
    """

    def __init__(
        self,
        img_size: tuple[int, ...],
        *,
        acceleration: int = 4,
        center_fraction: float | None = None,
        kind: str = "random",
        rng: torch.Generator | None = None,
        seed: int | None = None,
        device: torch.device | str = "cpu",
    ):
        img_size = checks.sizes("img_size", img_size)
        if len(img_size) not in (2, 3):
            raise ValueError(f"img_size must be (H, W) or (C, H, W), got {img_size}.")
        checks.real("acceleration", acceleration, 1)
        if center_fraction is None:
            center_fraction = 0.08 if acceleration < 8 else 0.04
        checks.positive("center_fraction", center_fraction, below=1)
        checks.choice("kind", kind, tuple(MASK_KINDS))
        if (rng is None) == (seed is None):
            raise ValueError(
                f"give exactly one of rng and seed, got rng={rng} and seed={seed}: "
                "for example seed=0 for training and seed=1 for testing."
            )
        if seed is not None:
            rng = torch.Generator(device).manual_seed(checks.seed("seed", seed))
        else:
            checks.instance("rng", rng, torch.Generator, "torch.Generator")
        super().__init__(rng=rng, device=device)
        self.img_size = img_size
        self.acceleration = acceleration
        self.center_fraction = center_fraction
        self.kind = kind
        self.mask_func = MASK_KINDS[kind]([center_fraction], [acceleration])
        self.n_center = self._center_columns(self.img_size[-1])

    def step(
        self,
        batch_size: int = 1,
        seed: int | str | None = None,
        img_size: tuple[int, int] | None = None,
        **kwargs,
    ) -> dict[str, torch.Tensor]:
        r"""
        Draw masks of zeros and ones.

        :param int batch_size: number of masks; 0, as in the host, is one without batch. Default: 1.
        :param int, str seed: restart the generator from this seed. Default: carry on.
        :param tuple img_size: `(H, W)` for this call. Default: that of the constructor.
        :return: (:class:`dict`) key ``"mask"``, shape `(B, C, H, W)`, :math:`C = 1` if the
            constructor was given `(H, W)`.
        :raises TypeError: if an argument is of the wrong type.
        :raises ValueError: if an argument is out of range, or the centre takes none or all of the
            columns of this size.
        """
        batch_size = checks.whole("batch_size", batch_size, 0)
        size = self.img_size[-2:] if img_size is None else checks.sizes("img_size", img_size)
        if len(size) != 2:
            raise ValueError(f"img_size must be (H, W) in a call, got {size}.")
        if seed is not None:
            self.rng_manual_seed(seed if isinstance(seed, str) else checks.seed("seed", seed))
        height, width = size
        channels = self.img_size[0] if len(self.img_size) == 3 else 1
        self.n_center = self._center_columns(width)
        device = self.rng.device
        high = min(2**32, checks.widest_draw(device))
        seeds = torch.randint(high, (max(batch_size, 1),), generator=self.rng, device=device)
        columns = torch.cat([self.mask_func((height, width, 2), seed=s)[0] for s in seeds.tolist()])
        mask = columns.mT[:, None].expand(-1, channels, height, -1)
        mask = mask.to(**self.factory_kwargs).contiguous()
        return {"mask": mask if batch_size else mask[0]}

    def _center_columns(self, width: int) -> int:
        # fastmri samples some other column only where this holds, and without any central
        # one a mask may come out empty
        columns = round(self.center_fraction * width)
        if not 0 < columns < width / self.acceleration:
            raise ValueError(
                "the centre must take at least 1 and fewer than W / acceleration = "
                f"{width} / {self.acceleration} columns, got {columns} with center_fraction="
                f"{self.center_fraction}: change center_fraction or acceleration."
            )
        return columns
