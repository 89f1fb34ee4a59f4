r"""
Three trainings compared on single-coil MRI
===========================================

An unrolled network is trained with the mean squared error, with SPGD jittering, and with noise and
attacks in turn; then all three are attacked, and one table and one picture say what they
withstand. The trainings go on from networks of the package, trained for minutes
on slices of a brain: here they get used to your data.
"""

import sys
from pathlib import Path

import deepinv as dinv
import torch

import deepinv_jitter as dj

sys.path.insert(0, str(Path(__file__).parent.parent))
import comparing

EXAMPLES = """\
  python examples/mri/compare.py
  python examples/mri/compare.py --steps 100 --attacks quick
  python examples/mri/compare.py --data knee/singlecoil_train --size 320 320 --steps 5000"""


def main(arguments: list[str] | None = None) -> None:
    parser = comparing.parser(
        "Three trainings compared on single-coil MRI, 4x accelerated", EXAMPLES, (160, 128), 2
    )
    parser.add_argument("--data", help="folder of fastMRI single-coil files instead of a brain")
    args = parser.parse_args(arguments)
    size = tuple(args.size)
    if args.data:
        train, test = comparing.split(dj.fastmri_slices(args.data, img_size=size))
    else:
        train = dj.BrainSliceDataset("train", img_size=size, contrast=True, copies=10)
        test = dj.BrainSliceDataset("test", img_size=size)
    rng = torch.Generator(args.device).manual_seed(0)
    noise = dinv.physics.GaussianNoise(0.05, rng=rng)
    comparison = comparing.Comparison(
        networks="mri",
        train=train,
        test=test,
        physics=dj.SingleCoilMRI(img_size=size, noise_model=noise, device=args.device),
        masks=dj.FastMRIMaskGenerator(size, acceleration=4, seed=0, device=args.device),
        jitter=0.05,
        sigma=0.05,
    )
    comparing.run(comparison, args)


if __name__ == "__main__":
    main()
