"""A folder in the layout of fastMRI, for tests of what reads one."""

import h5py
import numpy as np


def write_volumes(folder, count):
    """Files of 4 random slices of 40 x 36 pixels."""
    rng = np.random.default_rng(0)
    for k in range(count):
        image = rng.random((4, 40, 36), dtype=np.float32)
        with h5py.File(folder / f"volume{k}.h5", "w") as file:
            file["reconstruction_esc"] = image
            file["kspace"] = image.astype(np.complex64)
