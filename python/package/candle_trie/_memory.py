"""The memory of tensors, as the native part takes it."""

from __future__ import annotations

import torch

RawMatrix = tuple[int, int, int, int]

DTYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
}


def dtype_name(what: str, tensor: torch.Tensor) -> str:
    """Returns the name of a dtype that the losses take."""
    if tensor.dtype not in DTYPES:
        raise ValueError(f"{what}: expected {', '.join(DTYPES.values())}, found {tensor.dtype}")
    return DTYPES[tensor.dtype]


def check_on_cpu(what: str, tensor: torch.Tensor) -> None:
    """Refuses tensors of other devices, for which this build has no kernels."""
    if tensor.device.type != "cpu":
        raise ValueError(f"{what}: expected a tensor on the CPU, found one on {tensor.device}; this build has no kernels for it")


def as_matrix(what: str, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor [.., W] as one [N, W] whose rows are contiguous: a view where there is one, else a copy."""
    check_on_cpu(what, tensor)
    if tensor.dim() == 0:
        raise ValueError(f"{what}: expected at least one dimension, found a scalar")
    matrix = tensor.detach().reshape(-1, tensor.shape[-1]) if tensor.numel() else tensor.detach().new_empty(
        (tensor.shape[:-1].numel(), tensor.shape[-1])
    )
    return matrix if matrix.stride(1) == 1 or matrix.shape[1] <= 1 else matrix.contiguous()


def raw(matrix: torch.Tensor) -> RawMatrix:
    """Returns address, rows, width and row stride. The caller keeps the tensor until the native call has returned."""
    rows, width = matrix.shape
    # With one row the stride does not matter, and may be anything.
    return matrix.data_ptr(), rows, width, matrix.stride(0) if rows > 1 else width


def raw_vector(tensor: torch.Tensor | None) -> tuple[int, int]:
    """Returns address and length of a contiguous vector; those of an empty one for None."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.numel())
