"""Writes Llama 3's tokenizer, Llama-3.json, from its tokenizer.model, tokens by rank: see get-llama-3-tokenizer.

usage: llama_3_tokenizer.py FOLDER
"""

import base64
import json
import sys
from pathlib import Path

# As llama_models/llama3/tokenizer.py has them.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "begin_of_text end_of_text reserved_special_token_0 reserved_special_token_1 finetune_right_pad_id step_id "
    "start_header_id end_header_id eom_id eot_id python_tag image"
).split()
SPECIAL += [f"reserved_special_token_{number}" for number in range(2, 246)]


def byte_characters():
    """The character by which a byte-level tokenizer writes each byte: the visible ones themselves, the others
    from U+0100 on."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return {**{byte: chr(byte) for byte in visible}, **{byte: chr(256 + at) for at, byte in enumerate(hidden)}}


def tokenizer(ranks):
    """The tokenizer of `ranks`, from bytes to rank: of all adjacent parts, the two whose union has the lowest rank
    are merged first, so each way to cut a token in two is a merge of its rank."""
    characters = byte_characters()
    text = {token: "".join(characters[byte] for byte in token) for token in ranks}
    merges = []
    for token in sorted(ranks, key=ranks.get):
        cuts = [(token[:at], token[at:]) for at in range(1, len(token))]
        merges += [[text[left], text[right]] for left, right in cuts if left in ranks and right in ranks]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    words = {"type": "Split", "pattern": {"Regex": WORDS}, "behavior": "Isolated", "invert": False}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": len(ranks) + at, "content": f"<|{name}|>", **plain} for at, name in enumerate(SPECIAL)
        ],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [words, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            # A word that is a token is one, whether or not merges lead to it.
            "ignore_merges": True,
            "vocab": {text[token]: rank for token, rank in ranks.items()},
            "merges": merges,
        },
    }


def main():
    folder = Path(sys.argv[1]) if len(sys.argv) == 2 else sys.exit(__doc__)
    lines = (folder / "tokenizer.model").read_text().split("\n")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    (folder / "Llama-3.json").write_text(json.dumps(tokenizer(ranks), ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
