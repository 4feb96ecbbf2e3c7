"""Models whose parameters `torch.distributed.fsdp.fully_shard` (FSDP2) has divided: each rank has a shard of each."""

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from amun_ext.distributed import by_first_rank, exchange, rank, world_size
from amun_ext.validation import listed, require


def is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "to_local")  # a DTensor, without an import of its module


def own_part(tensor: Any) -> Tensor:
    """The shard of this rank; any other tensor as it is."""
    own: Tensor = tensor.to_local() if is_shard(tensor) else tensor
    return own


def whole(tensor: Any) -> Tensor:
    """The tensor put together from its shards, which all ranks have to ask for; any other as it is."""
    full: Tensor = tensor.detach().full_tensor() if is_shard(tensor) else tensor
    return full


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """The whole `tensor` divided as `like` is; as it is if that is no shard, or of another shape."""
    if not is_shard(like) or is_shard(tensor) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, by a call of all ranks; those made of shards only on the first rank, on its CPU."""
    kept = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if not is_shard(tensor):
            kept[name] = full
        elif rank() == 0:
            kept[name] = full.cpu()
    return kept


def scattered(tensor: Tensor, like: Any) -> Tensor:
    """The first rank's whole `tensor` divided as `like` is; a copy on its device if that is no shard."""
    tensor = tensor.to(like.device, copy=True)
    if not is_shard(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements)


def write_whole(write: Callable[[dict[str, Tensor]], None], tensors: Mapping[str, Tensor]) -> None:
    """write(tensors); if they are shards, by the first rank when all have called this."""
    once = by_first_rank(write) if any(map(is_shard, tensors.values())) else write
    once(gathered(tensors))


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of those with a value that is NaN or infinite, on any rank."""
    broken = [name for name, tensor in tensors.items() if not own_part(tensor).isfinite().all()]
    if any(map(is_shard, tensors.values())):
        found = {name for each in exchange(broken) for name in each}
        broken = [name for name in tensors if name in found]
    return broken


def is_sharded(model: nn.Module) -> bool:
    reshard(model)
    return any(map(is_shard, model.parameters()))


def reshard(model: nn.Module) -> None:
    """Leave the shards as the parameters, where a forward without a backward has left the whole ones."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules() if fsdp else ():
        if isinstance(module, fsdp.FSDPModule):  # type: ignore[union-attr]
            module.reshard()


def check_not_sharded(model: nn.Module) -> None:
    """InputError for a sharded model."""
    require(not is_sharded(model), "model", "of whole parameters, not sharded by fully_shard", "shards")


def check_shards(model: nn.Module) -> None:
    """InputError for a model of which some parameters are sharded and others are not, or not over all ranks."""
    if not is_sharded(model):
        return
    apart = [name for name, weight in model.named_parameters() if weight.requires_grad and not is_shard(weight)]
    require(not apart, "model", "sharded as a whole, by a last fully_shard(model)", f"whole ones in {listed(apart)}")
    meshes = {weight.device_mesh for weight in model.parameters() if is_shard(weight)}  # type: ignore[attr-defined]
    shapes = {tuple(mesh.shape) for mesh in meshes}
    require(shapes == {(world_size(),)}, "model", f"sharded over all {world_size()} ranks", f"meshes {shapes}")
