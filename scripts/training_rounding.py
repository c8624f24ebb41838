"""Whether adapter weights differ by rounding or by a wrong gradient: PyTorch in f64 judges PyTorch in f32 and msl.

usage: python training_rounding.py EXAMPLE GGUF, with the example beside_transformers that is built for
check-against-transformers.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import peft
import torch
import torch_beside_msl as beside
from safetensors.torch import load_file

LEARNING_RATE = 1e-4


def weights(tensors, kind):
    return torch.cat([tensors[name].detach().double().flatten() for name in sorted(tensors) if kind in name])


def trained_by_torch(folder, data, dtype):
    base = beside.load_model(folder / "model")
    model = peft.PeftModel.from_pretrained(base, folder / "start", is_trainable=True).to(dtype)
    beside.train(model, data, "lml", 1.5, LEARNING_RATE)
    return peft.get_peft_model_state_dict(model)


def difference(a, b, judge):
    largest = (a - b).abs().max()
    mean = ((a - b).square().mean() / judge.square().mean()).sqrt()
    return f"{largest:.1e} absolute, {largest / judge.abs().max():.1e} relative, rms {mean:.1e}"


def main(example, gguf):
    ours = lambda *words: subprocess.run([example, *map(str, words)], check=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        ours("export", gguf, folder / "model")
        data = beside.random_batches(beside.random_responses(60, 2_000), 10, rows=4, vocabulary=2_000, prompt=24)
        torch.manual_seed(0)
        beside.with_adapter(beside.load_model(folder / "model"), ["q_proj", "v_proj"]).save_pretrained(folder / "start")
        for steps in (1, 2, 10):
            part = dict(data, batches=data["batches"][:steps])
            (folder / "batches.json").write_text(json.dumps(part))
            paths = [folder / name for name in ("model", "start", "batches.json", "end")]
            options = ["--loss", "lml", "--temperature", "1.5", "--batch-size", "4", "--clip", "1e9"]
            ours("train", *paths, "--learning-rate", LEARNING_RATE, "--", *options)
            msl = load_file(folder / "end/adapter_model.safetensors")
            single = trained_by_torch(folder, part, torch.float32)
            double = trained_by_torch(folder, part, torch.float64)
            for kind in ("lora_A", "lora_B"):
                m, s, d = (weights(tensors, kind) for tensors in (msl, single, double))
                print(f"{steps} steps, {kind}")
                for name, a, b in [("msl to f32", m, s), ("msl to f64", m, d), ("f32 to f64", s, d)]:
                    print(f"  {name}: {difference(a, b, d)}", flush=True)


main(*sys.argv[1:])
