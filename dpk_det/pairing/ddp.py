"""DistributedDataParallel around a model whose parameters come and go."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

# what it keeps of its arguments under their own names
_ARGUMENTS = (
    "device_ids",
    "output_device",
    "broadcast_buffers",
    "process_group",
    "find_unused_parameters",
    "gradient_as_bucket_view",
    "static_graph",
)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without DistributedDataParallel around it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def rewrap(model: nn.Module) -> nn.Module:
    """Wrap a model anew, because DistributedDataParallel knows the parameters it was made with.

    Every process must call it. The model's weights become those of the first.

    Args:
        model: wrapped, or not: then it is returned as it is.

    Returns:
        A new wrapper of the same settings and communication hooks; buckets have the default size.
    """
    if not isinstance(model, DistributedDataParallel):
        return model
    arguments = {name: getattr(model, name) for name in _ARGUMENTS}
    wrapped = DistributedDataParallel(model.module, **arguments)
    for hook, state in model._comm_hooks:  # Detectron2's fp16_compression is one
        wrapped.register_comm_hook(state, hook)
    return wrapped
