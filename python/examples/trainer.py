"""Trains a small language model as a recommender with transformers' Trainer: only compute_loss differs.

    python examples/trainer.py

A made-up catalogue of 60 books; readers go on within a series. Prints how often the next book is among the first five.
"""

import random

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from candle_trie import MaskedSoftmaxLoss, TokenTrie, TrieLogitsProcessor

END, SEPARATOR, VOCABULARY = 0, 1, 64
# A title is the series, the volume and the end. Prompts list the books that a reader has had.
TITLES = [[2 + series, 22 + volume, END] for series in range(20) for volume in range(3)]


def prompt_of(history):
    return [token for book in history for token in TITLES[book][:2]] + [SEPARATOR]


class WithMaskedLoss(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        hidden = model.model(**inputs).last_hidden_state
        # The logits of all tokens are never computed.
        loss = self.masked_loss.forward_linear(hidden, model.lm_head.weight, labels)
        return (loss, hidden) if return_outputs else loss


def main():
    random.seed(0)
    torch.manual_seed(0)
    rows = []
    for _ in range(2000):
        history = [random.randrange(60) for _ in range(3)]
        following = history[-1] // 3 * 3 + (history[-1] + 1) % 3
        prompt = prompt_of(history)
        rows.append({"input_ids": prompt + TITLES[following], "labels": [-100] * len(prompt) + TITLES[following]})

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        pad_token_id=END,
    )  # fmt: skip
    trie = TokenTrie.from_sequences(TITLES)
    arguments = TrainingArguments(
        "target/trainer", per_device_train_batch_size=64, num_train_epochs=8, learning_rate=3e-3, report_to=[],
        save_strategy="no", logging_steps=50, remove_unused_columns=False, use_cpu=True,
    )  # fmt: skip
    trainer = WithMaskedLoss(LlamaForCausalLM(config), arguments, train_dataset=rows[:-200])
    trainer.masked_loss = MaskedSoftmaxLoss(trie)
    trainer.train()

    hits = 0
    for row in rows[-200:]:
        prompt = torch.tensor([row["input_ids"][:7]])
        only_titles = [TrieLogitsProcessor(trie, 7, END, normalise="trie")]
        found = trainer.model.generate(
            prompt, attention_mask=torch.ones_like(prompt), num_beams=5, num_return_sequences=5, max_new_tokens=3,
            do_sample=False, eos_token_id=END, pad_token_id=END, logits_processor=only_titles,
        )  # fmt: skip
        hits += row["input_ids"][7:] in found[:, 7:].tolist()
    print(f"The next book is among the first five of {hits} of 200 readers; at random it would be of 17.")


if __name__ == "__main__":
    main()
