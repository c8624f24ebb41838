"""The published loss in PyTorch, and the benchmark's batch as it wants it."""

import json

import torch


def published_loss(logits, mask, targets, temperature):
    """Mean over all rows of log Σ exp(valid / τ) − target / τ, as published (arXiv 2504.04178): the
    invalid logits of a copy become −∞, and exponentials are not shifted."""
    valid = logits.clone()
    valid = valid.masked_fill(~mask, float("-inf"))
    normaliser = torch.log(torch.exp(valid / temperature).sum(dim=-1))
    target = logits.gather(1, targets.unsqueeze(1)).squeeze(1) / temperature
    return torch.mean(normaliser - target)


def batch(shape, vocabulary):
    """The rows of a file of benches/shapes: a bool mask [N, V] and the targets [N]. Needs nothing but
    PyTorch, which may be all that a machine with a GPU has."""
    tensors = read_u32(shape)
    offsets, tokens, rows = tensors["offsets"], tensors["tokens"], tensors["rows"].tolist()
    mask = torch.zeros(len(rows), vocabulary, dtype=torch.bool)
    for index, (_, token_set, _) in enumerate(rows):
        mask[index, tokens[offsets[token_set] : offsets[token_set + 1]]] = True
    return mask, torch.tensor([target for _, _, target in rows])


def read_u32(path):
    """The u32 tensors of a safetensors file, as int64."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = bytearray(file.read())
    return {
        name: torch.frombuffer(data[slice(*entry["data_offsets"])], dtype=torch.int32)
        .long()
        .reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
