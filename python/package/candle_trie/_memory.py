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


def readable(what: str, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor of the same values whose elements can be read at its address: itself, or a copy."""
    check_device(what, tensor)
    # A negation that PyTorch has put off until the elements are read.
    tensor = tensor.detach().resolve_neg()
    if tensor.numel() == 0:
        return tensor
    if tensor.data_ptr() == 0:
        raise ValueError(
            f"{what}: expected a tensor that has its elements in memory, found a {type(tensor).__name__} that has none "
            "(full_tensor() gathers the parts of a DTensor)"
        )
    last = tensor.storage_offset() + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    there = tensor.untyped_storage().nbytes() // tensor.element_size()
    if last >= there:
        raise ValueError(f"{what}: expected memory for {last + 1} elements, found {there}: it has been freed")
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def as_matrix(what: str, tensor: torch.Tensor) -> torch.Tensor:
    """Returns a tensor [.., W] as one [N, W] whose rows are contiguous: a view where there is one, else a copy."""
    tensor = readable(what, tensor)
    if tensor.dim() == 0:
        raise ValueError(f"{what}: expected at least one dimension, found a scalar")
    leading, width = tensor.shape[:-1], tensor.shape[-1]
    matrix = tensor.reshape(leading.numel(), width)
    return matrix if matrix.stride(1) == 1 or width <= 1 else matrix.contiguous()


def check_head(hidden: torch.dtype, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Refuses a head whose parts do not fit each other, or are of another dtype than hidden states."""
    if weight.dim() != 2:
        raise ValueError(f"head: expected the shape [V, H], found {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias: expected the shape {list(weight.shape[:1])}, found {list(bias.shape)}")
    for what, tensor in (("head", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden:
            raise ValueError(f"{what}: expected {hidden}, as the hidden states, found {tensor.dtype}")
        if tensor is not None and tensor.device != weight.device:
            raise ValueError(f"{what}: expected it on {weight.device}, as the head, found it on {tensor.device}")


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
        check_head(hidden.dtype, weight, bias)
        self.dtype = dtype_name("hidden states", hidden)
        self.hidden, self.weight = as_matrix("hidden states", hidden), as_matrix("head", weight)
        self.bias = None if bias is None else readable("bias", bias).contiguous()
        self.raw = (raw(self.hidden), raw(self.weight), None if bias is None else raw_vector(self.bias))
