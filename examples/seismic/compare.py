r"""
Three trainings compared on seismic deconvolution
=================================================

An unrolled network is trained with the mean squared error, with SPGD jittering, and with noise and
attacks in turn; then all three are attacked, and one table and one picture say what they
withstand. The trainings go on from networks of the package, trained for minutes
on synthetic sections: here they get used to your sections and your wavelet.
"""

import sys
from pathlib import Path

import deepinv as dinv
import numpy as np
import torch
from deepinv.datasets import TensorDataset

import deepinv_jitter as dj

sys.path.insert(0, str(Path(__file__).parent.parent))
import comparing

EXAMPLES = """\
  python examples/seismic/compare.py
  python examples/seismic/compare.py --frequency 25 --dt 4
  python examples/seismic/compare.py --data survey.sgy --wavelet wavelet.txt --size 128 128"""


def main(arguments: list[str] | None = None) -> None:
    parser = comparing.parser(
        "Three trainings compared on seismic deconvolution", EXAMPLES, (96, 96), 4
    )
    parser.add_argument("--data", help="SEG-Y file of a reflectivity model, the truth")
    parser.add_argument(
        "--direction", default="inline", help="crossline, or trace for a single line"
    )
    parser.add_argument("--wavelet", help="text or .npy file, an odd number of samples")
    parser.add_argument("--frequency", type=float, help="of a Ricker wavelet instead, in Hz")
    parser.add_argument("--dt", type=float, help="sampling interval in ms, with --frequency")
    args = parser.parse_args(arguments)
    size = tuple(args.size)
    if args.data:
        x = dj.segy_sections(args.data, img_size=size, direction=args.direction)
        sections = TensorDataset(x=x, use_dict_output=True)
        sections.peak = 2.0  # from -1 to 1: what PSNR and SSIM refer to
        train, test = comparing.split(sections)
    else:
        train, test = (dj.ReflectivityDataset(n, img_size=size, seed=n) for n in (1000, 12))
    if args.wavelet:
        read = np.load if args.wavelet.endswith(".npy") else np.loadtxt
        wavelet = torch.from_numpy(read(args.wavelet)).float()
    else:
        wavelet = dj.ricker(frequency=args.frequency, dt=args.dt)
    rng = torch.Generator(args.device).manual_seed(0)
    noise = dinv.physics.GaussianNoise(0.01, rng=rng)
    comparison = comparing.Comparison(
        networks="seismic",
        train=train,
        test=test,
        physics=dj.SeismicConvolution(wavelet, noise_model=noise, device=args.device),
        jitter=0.01,
        sigma=0.01,
    )
    comparing.run(comparison, args)


if __name__ == "__main__":
    main()
