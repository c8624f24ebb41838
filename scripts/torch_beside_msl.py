"""The PyTorch side of check-against-transformers and compare-training: transformers, PEFT and the published loss."""

import contextlib
import time
from unittest import mock

import peft
import torch
import torch.nn.functional as F
import transformers

IGNORED = -100


def load_model(path, **more):
    """In f32, whatever the checkpoint has, without dropout."""
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **more)
    return model.eval()


@contextlib.contextmanager
def in_double(adapted):
    """Makes a model f64, and while it lasts f64 of whatever transformers and the published loss make f32: norms,
    rotary angles, softmaxes."""
    base = adapted.to(torch.float64).get_base_model().model
    with contextlib.ExitStack() as patches:
        for name in ["float32", "float"]:
            patches.enter_context(mock.patch.object(torch, name, torch.float64))
        patches.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        base.rotary_emb = type(base.rotary_emb)(base.config)
        yield


def with_adapter(model, targets, added=0):
    """New adapters of the paper's sizes, and the last `added` tokens trained with them."""
    last = list(range(model.config.vocab_size - added, model.config.vocab_size))
    tokens = last if model.config.tie_word_embeddings else {"embed_tokens": last, "lm_head": last}
    settings = peft.LoraConfig(
        r=8,
        lora_alpha=16,
        lora_dropout=0.0,
        target_modules=targets,
        task_type="CAUSAL_LM",
        trainable_token_indices=tokens if added else None,
    )
    return peft.get_peft_model(model, settings)


def random_responses(count, vocabulary):
    """Token paths that share beginnings, each ended by token 0."""
    generator = torch.Generator().manual_seed(2)
    draw = lambda low, high, size: torch.randint(low, high, (size,), generator=generator).tolist()
    paths = {tuple(draw(1, 6, 2) + draw(6, vocabulary, 3)) + (0,) for _ in range(count)}
    return [list(path) for path in sorted(paths)]


def random_codes(count, first, vocabulary):
    """Paths of three of the tokens from `first` on, each ended by token 0."""
    generator = torch.Generator().manual_seed(3)
    paths = {tuple(torch.randint(first, vocabulary, (3,), generator=generator).tolist()) + (0,) for _ in range(count)}
    return [list(path) for path in sorted(paths)]


def random_batches(responses, steps, rows, vocabulary, prompt):
    """Batches of random prompts of several lengths and random responses."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda low, high, size: torch.randint(low, high, (size,), generator=generator).tolist()

    def row():
        length = draw(prompt // 2, prompt + 1, 1)[0]
        return {"prompt": draw(1, vocabulary, length), "response": responses[draw(0, len(responses), 1)[0]]}

    return {"catalogue": responses, "batches": [[row() for _ in range(rows)] for _ in range(steps)]}


class PrefixMask:
    """Which tokens go on from a prefix of some response, as the published code keeps it."""

    def __init__(self, catalogue):
        self.next = {}
        for path in catalogue:
            for end, token in enumerate(path):
                self.next.setdefault(tuple(path[:end]), set()).add(token)

    def of(self, responses, width, length):
        """`[rows, length, width]`, true where a token is valid; everything is where nothing is predicted."""
        mask = torch.ones(len(responses), length, width, dtype=torch.bool)
        for row, response in enumerate(responses):
            for end in range(len(response)):
                place = length - len(response) + end
                mask[row, place] = False
                mask[row, place, list(self.next[tuple(response[:end])])] = True
        return mask


def collate(batch):
    """Padded on the left, as the published collator does: tokens, attention mask, and labels of the next token."""
    longest = max(len(row["prompt"]) + len(row["response"]) for row in batch)
    tokens, attention, labels = [], [], []
    for row in batch:
        whole = row["prompt"] + row["response"]
        padding = longest - len(whole)
        tokens.append([0] * padding + whole)
        attention.append([0] * padding + [1] * len(whole))
        labels.append([IGNORED] * (longest - len(row["response"])) + row["response"])
    return torch.tensor(tokens), torch.tensor(attention), torch.tensor(labels)


def loss_of(logits, labels, mask, temperature):
    """The published loss: logits that continue no item are masked, the rest is a cross entropy at a temperature."""
    logits = logits[:, :-1].float() / temperature
    if mask is not None:
        logits = logits.masked_fill(~mask[:, 1:], float("-inf"))
    labels = labels[:, 1:]
    return F.cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.reshape(-1), ignore_index=IGNORED)


def train(model, data, loss, temperature, learning_rate, short=False):
    """Losses, seconds and tokens of every step. With `short`, logits are made for the longest response's rows alone."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    prefixes = PrefixMask(data["catalogue"])
    losses, seconds, counts = [], [], []
    for batch in data["batches"]:
        tokens, attention, labels = collate(batch)
        responses = [row["response"] for row in batch]
        vocabulary = model.config.vocab_size
        mask = prefixes.of(responses, vocabulary, tokens.shape[1]) if loss == "msl" else None
        kept = max(map(len, responses)) + 1 if short else 0
        mask = mask[:, -kept:] if mask is not None else None
        begun = time.perf_counter()
        # Left out of what a model is given are positions: they follow from the attention mask.
        positions = (attention.cumsum(1) - 1).clamp_min(0)
        logits = model(
            input_ids=tokens,
            attention_mask=attention,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=kept,
        ).logits
        value = loss_of(logits, labels[:, -kept:], mask, temperature)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(value.item())
        seconds.append(time.perf_counter() - begun)
        counts.append(int(attention.sum()))
    return {"losses": losses, "seconds": seconds, "tokens": counts}
