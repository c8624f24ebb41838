"""Tunes SmolLM2-135M with adapters on Amazon's Office products, in a plain loop with PEFT.

    python examples/tune_smollm2.py DATA [STEPS]

DATA is a folder with the paper's files, id2name4Rec.json and train_10000.csv. The model comes from scripts/get-smollm2.
"""

import ast
import csv
import json
import sys
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from candle_trie import AdaptiveTemperature, FrozenHead, MaskedSoftmaxLoss, TokenTrie

data, steps = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100
folder, file = "data/smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear"))

titles = {int(item): title for item, title in json.loads((data / "id2name4Rec.json").read_text()).items() if title}
tokens = {item: tokenizer(f' "{title}"')["input_ids"] + [tokenizer.eos_token_id] for item, title in titles.items()}
trie = TokenTrie.from_sequences(tokens.values(), ids=tokens.keys())
loss = MaskedSoftmaxLoss(trie, AdaptiveTemperature(scope="branching"))
head = FrozenHead(model.base_model.model.lm_head.weight, trie)

with (data / "train_10000.csv").open() as rows:
    histories = [ast.literal_eval(row["item_ids"]) for row in csv.DictReader(rows)]
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
for step in range(steps):
    batch = [history for history in histories[8 * step : 8 * step + 8] if all(item in tokens for item in history)]
    prompts = [tokenizer("Bought: " + ", ".join(titles[item] for item in h[:-1]) + ". Next:")["input_ids"] for h in batch]
    rows = [(prompt[-200:], tokens[history[-1]]) for prompt, history in zip(prompts, batch)]
    width = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.tensor([p + a + [0] * (width - len(p) - len(a)) for p, a in rows])
    labels = torch.tensor([[-100] * len(p) + a + [-100] * (width - len(p) - len(a)) for p, a in rows])
    hidden = model.base_model.model.model(ids).last_hidden_state
    value = loss.forward_linear(hidden, head, labels)
    value.backward()
    optimizer.step()
    optimizer.zero_grad()
    print(f"step {step}: loss {value.item():.4f} at temperature {loss.temperature:.3f}")
