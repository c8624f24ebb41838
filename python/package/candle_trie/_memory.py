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
    """Returns the name of a dtype that the losses take on the tensor's device."""
    taken = [dtype for dtype in DTYPES if not (tensor.is_cuda and dtype == torch.float64)]
    if tensor.dtype not in taken:
        names = ", ".join(DTYPES[dtype] for dtype in taken)
        raise ValueError(f"{what}: expected {names} on the device {tensor.device.type}, found {tensor.dtype}")
    return DTYPES[tensor.dtype]


def check_device(what: str, tensor: torch.Tensor) -> None:
    """Refuses tensors of devices that there are no kernels for."""
    if tensor.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{what}: expected a tensor on the CPU or a CUDA device, found one on {tensor.device}")


def as_matrix(what: str, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor [.., W] as one [N, W] whose rows are contiguous: a view where there is one, else a copy."""
    check_device(what, tensor)
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


def address(tensor: torch.Tensor | None) -> int:
    """Returns the address of a tensor: 0 for None, and for one without elements."""
    return 0 if tensor is None else tensor.data_ptr()


def raw_vector(tensor: torch.Tensor | None) -> tuple[int, int]:
    """Returns address and length of a contiguous vector; those of an empty one for None."""
    return (0, 0) if tensor is None else (tensor.data_ptr(), tensor.numel())


class Inputs:
    """Hidden states, head and bias as matrices, which must outlive the calls that their addresses are passed to."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self.dtype = dtype_name("hidden states", hidden)
        self.hidden, self.weight = as_matrix("hidden states", hidden), as_matrix("head", weight)
        self.bias = None if bias is None else bias.detach().contiguous()
        self.raw = (raw(self.hidden), raw(self.weight), *raw_vector(self.bias))
