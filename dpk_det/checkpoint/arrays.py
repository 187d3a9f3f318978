"""Read pickles of arrays without running code; an ordinary pickle may call any function."""

import collections
import pickle
from typing import Any, BinaryIO

import numpy as np

_KNOWN = {
    # taken from what numpy itself writes, because numpy renamed its modules
    "_reconstruct": np.empty(0).__reduce__()[0],
    "_frombuffer": np.empty(1).__reduce_ex__(5)[0],
    "scalar": np.float32(0).__reduce__()[0],
    "ndarray": np.ndarray,
    "dtype": np.dtype,
    "encode": lambda text, encoding: text.encode(encoding),
    "OrderedDict": collections.OrderedDict,
}
_MODULES = ("numpy", "_codecs", "collections")


def load_arrays(file: BinaryIO) -> Any:
    """Read a pickle of numpy arrays and plain values, in dicts, lists and tuples.

    The model zoo's weights and CIFAR's archives have this form. Strings from Python 2 are read as
    latin-1.

    Raises:
        pickle.UnpicklingError: if the pickle holds anything else, or is damaged.
    """
    try:
        return _Unpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError:
        raise
    except Exception as e:  # a damaged pickle raises errors of every kind
        raise pickle.UnpicklingError(f"it is damaged: {e!r}") from e


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] in _MODULES and name in _KNOWN:
            return _KNOWN[name]
        raise pickle.UnpicklingError(f"it holds {module}.{name}, and arrays alone are read")
