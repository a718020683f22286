"""A GPU that is none: shows where code mixes devices, on a machine without one.

Within ``pretended()``, tensors that were moved to ``GPU`` hold their values in the CPU's memory, so
that results can be compared, but an operation on tensors of both devices fails, as on a GPU. Single
numbers may come from the CPU, and so may indices.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU, CPU = torch.device("meta"), torch.device("cpu")  # torch knows meta without any driver
ATEN = torch.ops.aten
COPIES = (ATEN._to_copy.default, ATEN.copy_.default)
INDEXING = (ATEN.index.Tensor, ATEN.index_put.default, ATEN.index_put_.default)


class OnGPU(Tensor):
    """A tensor on the pretended GPU."""

    values: Tensor

    @staticmethod
    def __new__(cls, values):
        like = {"strides": values.stride(), "dtype": values.dtype, "device": GPU}
        new = Tensor._make_wrapper_subclass(cls, values.shape, **like)
        new.values = values
        return new

    @classmethod
    def __torch_dispatch__(cls, operation, types, arguments=(), options=None):
        return _do(operation, arguments, options or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        return _do(operation, arguments, options or {})


def _do(operation, arguments, options):
    given = [x for x in tree_leaves((arguments, options)) if isinstance(x, Tensor)]
    there = any(isinstance(x, OnGPU) for x in given)
    if options.get("device") is not None:
        there = torch.device(options["device"]) == GPU
        options = options | {"device": CPU}
    elif there and operation not in COPIES:
        checked = arguments[::2] if operation in INDEXING else given  # not the indices
        tensors = [x for x in checked if isinstance(x, Tensor)]
        aliens = [x for x in tensors if not isinstance(x, OnGPU) and x.dim()]
        if aliens:
            raise RuntimeError(f"{operation}: tensors on a GPU and on the CPU")
    arguments, options = tree_map(
        lambda x: x.values if isinstance(x, OnGPU) else x, (arguments, options)
    )
    found = operation(*arguments, **options)
    return tree_map(lambda x: OnGPU(x) if isinstance(x, Tensor) else x, found) if there else found


@contextmanager
def pretended() -> Iterator[torch.device]:
    """The device to move tensors to."""
    with _Mode():
        yield GPU
