"""Wraps a model in DistributedDataParallel again after its parameters have changed."""

from torch import nn
from torch.nn.parallel import DistributedDataParallel

# the arguments that DistributedDataParallel keeps as attributes of the same name
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
    """Wrap a model again, because DistributedDataParallel only knows its first parameters.

    Every process must call this. The model takes the weights of the first process.

    Args:
        model: a wrapped model. A model without a wrapper is returned unchanged.

    Returns:
        A new wrapper with the same settings and communication hooks, and buckets of default size.
    """
    if not isinstance(model, DistributedDataParallel):
        return model
    arguments = {name: getattr(model, name) for name in _ARGUMENTS}
    wrapped = DistributedDataParallel(model.module, **arguments)
    for hook, state in model._comm_hooks:  # for example Detectron2's fp16_compression
        wrapped.register_comm_hook(state, hook)
    return wrapped
