"""Compares msl's beam search with transformers' generate: see check-decoding beside this file."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer

TOLERANCE = 1e-4
# The published inference reads so many users at once; msl as many as it does by default.
SIDE_BY_SIDE = 4


class Trie:
    """The catalogue's token paths, as nested dictionaries."""

    def __init__(self, paths):
        self.root = {}
        for path in paths:
            node = self.root
            for token in path:
                node = node.setdefault(token, {})

    def allowed(self, prefix):
        node = self.root
        for token in prefix:
            node = node.get(token, {})
        return list(node)


def msl(executable, *arguments):
    output = subprocess.run([executable, *map(str, arguments)], check=True, stdout=subprocess.PIPE, text=True)
    return output.stdout


def responses(data):
    """The text that a model answers with for each item: its codes where the folder has an index, else its title."""
    for index in data.glob("*.index.json"):
        return {item: "".join(codes) for item, codes in json.loads(index.read_text()).items()}
    titles = json.loads((data / "id2name4Rec.json").read_text())
    return {item: f'"{title}"' for item, title in titles.items()}


def search(executable, run, folder, users, beams, *options):
    """The lists of some users, and how many a second were recommended to."""
    lists = folder / "lists.jsonl"
    report = json.loads(
        msl(
            *(executable, "evaluate", run, "--samples", users, "--beams", beams, "--temperature", 1),
            *("--lists", lists, "--json", *options),
        )
    )
    return [json.loads(line) for line in lists.read_text().splitlines()], report["rows"][-1]["users_per_second"]


def generate(model, prompts, trie, end, beams, length_penalty):
    """The sequences and scores of some users, as the published inference code gets them."""
    longest = max(map(len, prompts))
    tokens = torch.tensor([[end] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(
        tokens,
        attention_mask=mask,
        num_beams=beams,
        num_return_sequences=beams,
        do_sample=False,
        length_penalty=length_penalty,
        early_stopping=False,
        max_new_tokens=64,
        eos_token_id=end,
        pad_token_id=end,
        prefix_allowed_tokens_fn=lambda _, prefix: trie.allowed(prefix[longest:].tolist()) or [end],
        return_dict_in_generate=True,
        output_scores=True,
    )
    sequences = output.sequences[:, longest:].tolist()
    sequences = [tuple(sequence[: sequence.index(end) + 1]) for sequence in sequences]
    found = list(zip(sequences, output.sequences_scores.tolist()))
    return [found[user * beams : (user + 1) * beams] for user in range(len(prompts))]


def agrees(ours, theirs, path_of):
    """Whether two lists are the same, up to the order of scores that rounding may exchange."""
    ours = {path_of[found["items"][0]]: found["score"] for found in ours}
    theirs = dict(theirs)
    return ours.keys() == theirs.keys() and all(
        abs(ours[path] - score) <= TOLERANCE * max(1.0, abs(score)) for path, score in theirs.items()
    )


def main():
    parser = argparse.ArgumentParser(prog="check-decoding")
    parser.add_argument("--msl", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--catalogue", required=True, type=Path)
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--beams", type=int, nargs="+", default=[10])
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        run, merged = folder / "run", folder / "merged"
        msl(
            *(arguments.msl, "train", "--data", arguments.catalogue, "--model", arguments.gguf, "--output", run),
            *("--samples", 16, "--epochs", 1, "--loss", "msl"),
        )
        msl(arguments.msl, "merge", run, "--dtype", "f32", "--output", merged)
        model = transformers.AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).eval()
        tokenizer = Tokenizer.from_file(str(merged / "tokenizer.json"))
        end = model.config.eos_token_id
        end = end[0] if isinstance(end, list) else end
        path_of = {
            item: (*tokenizer.encode(text, add_special_tokens=False).ids, end)
            for item, text in responses(arguments.catalogue).items()
        }
        trie = Trie(path_of.values())
        agreed = compared = 0
        table = []
        for beams, length_penalty in [(beams, penalty) for beams in arguments.beams for penalty in (0.0, 1.0)]:
            options = ["--normalise", "vocabulary", "--length-penalty", length_penalty]
            lists, ours = search(arguments.msl, run, folder, arguments.users, beams, *options)
            begun = time.perf_counter()
            theirs = []
            for first in range(0, arguments.users, SIDE_BY_SIDE):
                prompts = [user["prompt"] for user in lists[first : first + SIDE_BY_SIDE]]
                theirs += generate(model, prompts, trie, end, beams, length_penalty)
            peer = arguments.users / (time.perf_counter() - begun)
            for user, found in zip(lists, theirs):
                same = agrees(user["recommended"], found, path_of)
                agreed += same
                compared += 1
                if not same:
                    print(f"user {user['user']}, {beams} beams, length penalty {length_penalty}: the lists differ")
            if length_penalty:
                _, over_trie = search(arguments.msl, run, folder, arguments.users, beams)
                speeds = {"ours, over the vocabulary": ours, "generate": peer, "ours, over the trie": over_trie}
                table += [f"| {name} | {beams} | {speed:.3f} | {speed / peer:.1f} |" for name, speed in speeds.items()]
    threads = torch.get_num_threads()
    print(f"\n{arguments.users} users, generate {SIDE_BY_SIDE} users at a time, f32, {threads} threads\n")
    print("| | beams | users/s | ratio |\n|---|---:|---:|---:|", *table, sep="\n")
    print(f"\n{agreed} of {compared} lists agree.")
    if agreed != compared:
        sys.exit(1)


if __name__ == "__main__":
    main()
