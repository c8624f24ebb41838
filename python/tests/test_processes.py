"""Several processes share a temperature."""

import torch
import torch.multiprocessing

from candle_trie import AdaptiveTemperature, MaskedSoftmaxLoss, TokenTrie

SEQUENCES = [[i % 12, 12 + i % 7, 39] for i in range(30)]
ADAPTIVE = AdaptiveTemperature(alpha=0.5, minimum=0.1)


def batch():
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(6, 5, 40, generator=generator, dtype=torch.float64)
    return logits, torch.tensor([[-100, -100] + SEQUENCES[item] for item in range(6)])


def run(rank, address, queue):
    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=3)
    logits, labels = batch()
    loss = MaskedSoftmaxLoss(TokenTrie.from_sequences(SEQUENCES), ADAPTIVE)
    # Compiled or not, and in parts of unequal size.
    for call in (loss, torch.compile(lambda *batch: loss(*batch), fullgraph=True, backend="aot_eager")):
        part = [slice(0, 1), slice(1, 3), slice(3, 6)][rank]
        call(logits[part], labels[part])
    queue.put((rank, loss.temperature))
    torch.distributed.destroy_process_group()


def test_the_temperature_follows_the_statistics_of_all_processes(tmp_path):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    arguments = (f"file://{tmp_path}/store", queue)
    processes = [context.Process(target=run, args=(rank, *arguments)) for rank in range(3)]
    for process in processes:
        process.start()
    found = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()

    loss = MaskedSoftmaxLoss(TokenTrie.from_sequences(SEQUENCES), ADAPTIVE)
    for _ in range(2):
        loss(*batch())
    assert found[0] == found[1] == found[2]
    assert abs(found[0] - loss.temperature) < 1e-12
    # One process's part would have given another.
    alone = MaskedSoftmaxLoss(TokenTrie.from_sequences(SEQUENCES), ADAPTIVE)
    for _ in range(2):
        alone(*(part[:1] for part in batch()))
    assert abs(found[0] - alone.temperature) > 1e-3
