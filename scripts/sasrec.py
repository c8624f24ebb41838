#!/usr/bin/env python3
"""SASRec (arXiv 1808.09781): causal self-attention over the items themselves, whose titles it does not read. A baseline for
what msl trains, on the same rows.

usage: scripts/sasrec.py --data FOLDER --output FOLDER [options]        needs PyTorch, 1.13 or newer

The loss is the cross entropy over the whole catalogue at every position of a row, and the scores are the products with the
items' own embeddings. The epoch that counts is the one with the lowest item NLL on the validation rows. Test rows are those
of msl evaluate. RecBole's atomic files are split as msl does. Of the paper's training rows those of whole users are held out,
where msl draws single rows: rows of a user overlap, and histories are trained on here. Both rank the same catalogue: items with one
title are one item, as those with the same codes are where the folder has codes, and rows with an item that has no title are left out.

The output folder gets ranks.csv as msl evaluate writes it (here with every user's rank, because all items are ranked),
evaluation.json and trained.json.
"""

import argparse
import copy
import csv
import json
import math
import random
import statistics
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

CUTOFFS = [1, 5, 10, 20]
IGNORED = -100


def read_paper(folder, options):
    """Titles by item id, and training, validation and test rows: user, sequence of item ids, the target last."""
    titles = json.loads((folder / "id2name4Rec.json").read_text(encoding="utf-8"))

    def rows(path):
        with open(path, encoding="utf-8") as file:
            return [(row["user_id"], [str(item) for item in json.loads(row["item_ids"])]) for row in csv.DictReader(file)]

    by_user = {}
    for row in rows(options.train or max(folder.glob("train*.csv"), key=lambda path: path.stat().st_size)):
        by_user.setdefault(row[0], []).append(row)
    users, validation = list(by_user.values()), []
    random.shuffle(users)
    while users and len(validation) < options.validation:
        validation += users.pop()
    return titles, [row for user in users for row in user], validation, rows(folder / "test.csv")


def read_recbole(folder, options):
    """The same of RecBole's atomic files: a user's last item is for the test, the one before for validation."""

    def table(extension):
        with open(min(folder.glob(f"*.{extension}")), encoding="utf-8") as file:
            header, *lines = (line.rstrip("\n").split("\t") for line in file)
            names = [column.split(":")[0] for column in header]
            return names, [dict(zip(names, line)) for line in lines]

    names, items = table("item")
    title = next(name for name in names if name in ("title", "name") or name.endswith(("_title", "_name")))
    titles = {item["item_id"]: item[title].strip() for item in items}
    users = {}
    for row in table("inter")[1]:
        users.setdefault(row["user_id"], []).append((float(row["timestamp"]), row["item_id"]))
    splits = {0: [], 1: [], 2: []}
    for user, chosen in users.items():
        chosen = [item for _, item in sorted(chosen, key=lambda moment: moment[0])]
        for place in range(1, len(chosen)):
            row = user, chosen[max(0, place - options.history) : place + 1]
            splits[min(2, len(chosen) - 1 - place)].append(row)
    return titles, splits[2], splits[1][: options.validation], splits[0]


def item_names(folder, titles):
    """What tells each item from the others: its codes, where the folder has them, or its title. Items without one are left out."""
    index = next(folder.glob("*.index.json"), None)
    codes = json.loads(index.read_text(encoding="utf-8")) if index else {}
    named = {item: tuple(codes[item]) if item in codes else title.strip() for item, title in titles.items()}
    return {item: name for item, name in named.items() if name and (item in codes or not codes)}


class SASRec(nn.Module):
    def __init__(self, items, longest, options):
        super().__init__()
        self.items = nn.Embedding(items, options.hidden)
        self.positions = nn.Embedding(longest, options.hidden)
        for embedding in (self.items, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)
        self.dropout = nn.Dropout(options.dropout)
        sizes = options.hidden, options.heads, options.hidden, options.dropout
        layer = nn.TransformerEncoderLayer(*sizes, batch_first=True, norm_first=True)
        norm = nn.LayerNorm(options.hidden)
        self.layers = nn.TransformerEncoder(layer, options.layers, norm, enable_nested_tensor=False)

    def forward(self, sequences):
        """Hidden states behind every position of sequences [B, T], which are padded at their ends."""
        length = sequences.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=sequences.device).triu(1)
        hidden = self.items(sequences) + self.positions.weight[:length]
        return self.layers(self.dropout(hidden), mask=later)

    def scores(self, hidden):
        """Of all items behind hidden states."""
        return hidden @ self.items.weight.T


def batches(rows, options, order):
    """Sequences [B, T], the item behind each position (IGNORED where there is none), and the last positions of the rows."""
    for start in range(0, len(rows), options.batch_size):
        chosen = [rows[index][1] for index in order[start : start + options.batch_size]]
        longest = max(map(len, chosen)) - 1
        pad = lambda items, filler: items + [filler] * (longest - len(items))
        sequences = torch.tensor([pad(items[:-1], 0) for items in chosen], device=options.device)
        targets = torch.tensor([pad(items[1:], IGNORED) for items in chosen], device=options.device)
        yield sequences, targets, torch.tensor([len(items) - 2 for items in chosen], device=options.device)


@torch.no_grad()
def evaluate(model, rows, options):
    """Rank, 1 the first, and item NLL of every row's target among all items."""
    model.eval()
    results = []
    for sequences, targets, last in batches(rows, options, range(len(rows))):
        of_row = torch.arange(len(last), device=options.device)
        scores, target = model.scores(model(sequences)[of_row, last]), targets[of_row, last]
        ranks = 1 + (scores > scores[of_row, target].unsqueeze(1)).sum(1)
        results += zip(ranks.tolist(), F.cross_entropy(scores, target, reduction="none").tolist())
    return results


def train(model, training, validation, options):
    """The model as it was at its best on the validation rows, and how it got there."""
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    order, begun, step, best = list(range(len(training))), time.time(), 0, None
    for epoch in range(1, options.epochs + 1):
        random.shuffle(order)
        model.train()
        for sequences, targets, _ in batches(training, options, order):
            counts = targets != IGNORED
            loss = F.cross_entropy(model.scores(model(sequences)[counts]), targets[counts])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
        nll = statistics.fmean(nll for _, nll in evaluate(model, validation, options))
        print(f"epoch {epoch}: validation item NLL {nll:.4f}, {time.time() - begun:.0f} s", flush=True)
        if best is None or nll < best["item_nll"]:
            best, weights, last = {"step": step, "item_nll": nll}, copy.deepcopy(model.state_dict()), epoch
        elif epoch - last >= options.patience:
            break
    model.load_state_dict(weights)
    return {"steps": step, "best": best, "temperature": None, "seconds": time.time() - begun}


def measures(results):
    """Means over the users and their standard errors, by the names that msl has for them."""
    gain = lambda rank, cutoff: 1 / math.log2(rank + 1) if rank <= cutoff else 0.0
    values = {f"hr@{cutoff}": [float(rank <= cutoff) for rank, _ in results] for cutoff in CUTOFFS}
    values |= {f"ndcg@{cutoff}": [gain(rank, cutoff) for rank, _ in results] for cutoff in CUTOFFS[1:]}
    values["item_nll"] = [nll for _, nll in results]
    errors = {f"{name}_error": statistics.stdev(of) / math.sqrt(len(of)) for name, of in values.items()}
    return {name: statistics.fmean(of) for name, of in values.items()} | errors


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder as msl train --data takes it")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train", type=Path, help="training rows in the paper's format [default: the largest train*.csv]")
    parser.add_argument("--validation", type=int, required=True, help="rows to choose the epoch by")
    parser.add_argument("--history", type=int, default=10, help="items of a history made of a .inter file")
    parser.add_argument("--epochs", type=int, default=100, help="the most epochs")
    parser.add_argument("--patience", type=int, default=5, help="epochs to go on without a better validation item NLL")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    random.seed(options.seed)
    torch.manual_seed(options.seed)
    read = read_paper if (options.data / "id2name4Rec.json").exists() else read_recbole
    titles, *splits = read(options.data, options)
    if not (splits[0] and splits[1]):
        parser.error(f"--validation {options.validation} leaves no rows to train on, or none to choose the epoch by")
    named = item_names(options.data, titles)
    splits = [[(user, items) for user, items in rows if all(item in named for item in items)] for rows in splits]
    number = {name: index for index, name in enumerate(dict.fromkeys(named.values()))}
    numbered = [[(user, [number[named[item]] for item in items]) for user, items in rows] for rows in splits]
    training, validation, test = numbered
    longest = max(len(items) for rows in numbered for _, items in rows) - 1
    model = SASRec(len(number), longest, options).to(options.device)
    trained = train(model, training, validation, options)
    results = evaluate(model, test, options)
    line = {"name": "SASRec", **measures(results), "seconds": trained["seconds"]}
    evaluation = {"command": "sasrec", "seed": options.seed, "users": len(test), "evaluated_on": "test", "rows": [line]}
    options.output.mkdir(parents=True, exist_ok=True)
    with open(options.output / "ranks.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["user_id", "item_id", "rank", "item_nll"])
        writer.writerows([user, items[-1], *result] for (user, items), result in zip(splits[2], results))
    for name, content in [("evaluation.json", evaluation | {"notes": []}), ("trained.json", trained)]:
        (options.output / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
