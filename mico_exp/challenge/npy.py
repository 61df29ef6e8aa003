"""Arrays in files of NumPy's own format, mapped, and nothing that they may hold is run.

Axes: M models, N records.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mico_exp.common import require
from mico_exp.common.arrays import Mask
from mico_exp.common.errors import InputError, first_line


def read_npy(path: Path) -> NDArray[Any]:
    """Map an array of a file.

    Raises:
        InputError: it cannot be read as one array of plain values.
    """
    try:
        found = np.load(require.file(path), mmap_mode="r", allow_pickle=False)
    except InputError:
        raise
    except Exception as error:  # whatever NumPy makes of damage
        raise InputError(f"{path}: cannot be read as an array: {first_line(error)}") from error
    if not isinstance(found, np.ndarray):
        raise InputError(f"{path}: must be one array, got several.")
    return found


def as_mask(origin: object, array: NDArray[Any], shape: tuple[int, ...]) -> Mask:
    """Take an array as a mask, of bool alone: whole numbers may be indices just as well.

    Raises:
        InputError: it is none of that shape; `origin` says whose it is.
    """
    if array.shape != shape or array.dtype != np.bool_:
        rows = ", a row for each model and a column for each record" if len(shape) == 2 else ""
        raise InputError(
            f"{origin}: must be a mask of bool {shape}{rows}, got {array.dtype} of shape "
            f"{array.shape}."
        )
    return np.array(array)
