"""Compares msl with transformers and PEFT: see check-against-transformers beside this file."""

import argparse
import contextlib
import json
import subprocess
import tempfile
from pathlib import Path

import peft
import torch
import torch_beside_msl as beside
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

TOLERANCE = 1e-4
DOUBLE_TOLERANCE = 1e-9
STEPS = 10
ADDED = 24
ALL_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES = dict(
    vocab_size=320,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    initializer_range=0.2,
    bos_token_id=None,
    eos_token_id=0,
    pad_token_id=None,
)


class Checks:
    """Comparisons, printed as they are made."""

    def __init__(self):
        self.passed = self.failed = 0

    def compare(self, name, ours, theirs, tolerance=TOLERANCE):
        """The largest difference relative to the largest value beside it, along the last dimension."""
        largest = theirs.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        error = ((ours - theirs).abs() / largest).max().item() if ours.shape == theirs.shape else float("inf")
        passed = error <= tolerance
        self.passed += passed
        self.failed += not passed
        print(f"{'passed' if passed else 'FAILED'}  {error:8.1e}  {name}", flush=True)


def small_models():
    """Name, configuration, type of the saved weights, size of a shard."""
    llama3 = dict(
        rope_type="llama3",
        rope_theta=10_000.0,
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=32,
    )
    untied = dict(SIZES, tie_word_embeddings=False)
    tied = dict(SIZES, tie_word_embeddings=True)
    yield "Llama, llama3 rope scaling, tied, in shards", transformers.LlamaConfig(
        **tied, rope_parameters=llama3
    ), torch.float32, "100KB"
    yield "Llama, untied", transformers.LlamaConfig(**untied), torch.float16, "1GB"
    yield "Qwen2, untied, bf16", transformers.Qwen2Config(**untied), torch.bfloat16, "1GB"
    yield "Qwen3, tied", transformers.Qwen3Config(**tied, head_dim=24), torch.float32, "1GB"


def make(config, dtype, shard, folder):
    """A random model in a folder; biases and norms are random too."""
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    vocabulary = {f"t{token}": token for token in range(config.vocab_size)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))


class Model:
    """One checkpoint, in transformers and in msl, to which tokens may be added."""

    def __init__(self, checks, tools, name, path, scratch, tokens, added=0):
        self.checks, self.tools, self.name, self.path = checks, tools, name, path
        self.scratch, self.tokens, self.added = scratch, tokens, added
        scratch.mkdir(exist_ok=True)
        save_file({"tokens": tokens.to(torch.uint32)}, scratch / "tokens.safetensors")

    def fresh(self):
        model = beside.load_model(self.path)
        if self.added:
            model.resize_token_embeddings(model.config.vocab_size + self.added)
        return model

    def compare(self, what, ours, theirs, **more):
        self.checks.compare(f"{self.name}: {what}", ours, theirs, **more)

    def logits(self, model):
        with torch.no_grad():
            return model(self.tokens).logits

    def our_logits(self, adapter=None, model=None):
        output = self.scratch / "logits.safetensors"
        more = ["--adapter", str(adapter)] if adapter else []
        self.tools.run("logits", model or self.path, self.scratch / "tokens.safetensors", output, *more)
        return load_file(output)["logits"]

    def check_logits(self):
        self.compare("logits", self.our_logits(), self.logits(self.fresh()))

    def check_our_adapter(self, targets):
        folder = self.scratch / "ours"
        self.tools.run("adapter", self.path, folder, "--targets", ",".join(targets), "--added", self.added)
        fresh = self.fresh()
        if self.added:
            tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
            codes = torch.tensor([tokenizer("<a_1><a_0>", add_special_tokens=False).input_ids])
            first = fresh.config.vocab_size - self.added
            self.compare("codes in our tokenizer", codes.float(), torch.tensor([[first + 1.0, first]]))
            fresh.resize_token_embeddings(len(tokenizer))
        adapted = peft.PeftModel.from_pretrained(fresh, folder)
        theirs = self.logits(adapted)
        what = f"our adapter ({', '.join(targets)}) in PEFT"
        self.compare(what, self.our_logits(folder), theirs)
        merged = self.scratch / "merged"
        self.tools.merge(folder, merged)
        self.compare(f"{what}, merged by msl merge, in transformers", self.logits(beside.load_model(merged)), theirs)

    def check_their_adapter(self, targets):
        folder = self.scratch / "theirs"
        adapted = beside.with_adapter(self.fresh(), targets, self.added)
        with torch.no_grad():
            for name, weight in adapted.named_parameters():
                if "lora_" in name or "trainable_tokens" in name:
                    weight.normal_(0, 0.05)
        adapted.save_pretrained(folder)
        self.compare(f"PEFT's adapter ({', '.join(targets)}) in msl", self.our_logits(folder), self.logits(adapted))

    def check_training(self, loss, learning_rate, responses, dtype):
        """In f64 the weights too: in f32 Adam makes steps of full size out of the rounding of gradients that are next to nothing."""
        start, end = self.scratch / "start", self.scratch / "end"
        beside.with_adapter(self.fresh(), ["q_proj", "v_proj"], self.added).save_pretrained(start)
        data = beside.random_batches(responses, STEPS, rows=4, vocabulary=self.tokens.max().item(), prompt=24)
        (self.scratch / "batches.json").write_text(json.dumps(data))
        options = ["--loss", loss, "--temperature", "1.5", "--batch-size", "4", "--clip", "1e9"]
        paths = [self.path, start, self.scratch / "batches.json", end]
        double = ["--double"] if dtype == torch.float64 else []
        self.tools.run("train", *paths, "--learning-rate", str(learning_rate), *double, "--", *options)
        ours = json.loads((end / "steps.json").read_text())["losses"]
        adapted = peft.PeftModel.from_pretrained(self.fresh(), start, is_trainable=True)
        with beside.in_double(adapted) if double else contextlib.nullcontext():
            theirs = beside.train(adapted, data, loss, 1.5, learning_rate)["losses"]
        what = f"{STEPS} steps of LoRA under {loss} in {'f64' if double else 'f32'}"
        tolerance = DOUBLE_TOLERANCE if double else TOLERANCE
        ours, theirs = (torch.tensor(losses, dtype=torch.float64).unsqueeze(1) for losses in (ours, theirs))
        self.compare(f"{what}, losses", ours, theirs, tolerance=tolerance)
        if not double:
            return
        weights = load_file(end / "adapter_model.safetensors")
        trained = peft.get_peft_model_state_dict(adapted, save_embedding_layers=False)
        assert weights.keys() == trained.keys()
        for kind in ["lora_A", "lora_B"] + ["embed_tokens", "lm_head"] * bool(self.added):
            if not any(kind in name for name in trained):
                continue
            flat = lambda tensors: torch.cat([tensors[name].flatten() for name in sorted(tensors) if kind in name])
            self.compare(f"{what}, all {kind}", flat(weights), flat(trained).detach(), tolerance=tolerance)


class Tools:
    def __init__(self, example, msl):
        self.example, self.msl = example, msl

    def run(self, *arguments):
        subprocess.run([self.example, *map(str, arguments)], check=True)

    def merge(self, adapter, output):
        command = [self.msl, "merge", adapter, "--dtype", "f32", "--output", output, "--overwrite"]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


def check_small(checks, tools, scratch):
    for index, (name, config, dtype, shard) in enumerate(small_models()):
        folder = scratch / str(index)
        folder.mkdir()
        torch.manual_seed(index)
        make(config, dtype, shard, folder / "model")
        tokens = torch.randint(1, config.vocab_size, (2, 90))
        model = Model(checks, tools, name, folder / "model", folder, tokens)
        model.check_logits()
        for targets in [["q_proj", "v_proj"], ALL_TARGETS]:
            model.check_our_adapter(targets)
            model.check_their_adapter(targets)
        for loss in ["lml", "msl"]:
            for dtype in [torch.float32, torch.float64]:
                model.check_training(loss, 1e-3, beside.random_responses(60, config.vocab_size), dtype)
        check_added(model, 1e-3)


def check_added(model, learning_rate):
    """The same model with more tokens, which stand in prompts and responses."""
    own = transformers.AutoConfig.from_pretrained(model.path).vocab_size
    tokens = torch.cat([model.tokens[:, :30], torch.randint(own, own + ADDED, (len(model.tokens), 30))], 1)
    name, scratch = f"{model.name}, {ADDED} added tokens", model.scratch / "added"
    added = Model(model.checks, model.tools, name, model.path, scratch, tokens, ADDED)
    added.check_our_adapter(["q_proj", "v_proj"])
    added.check_their_adapter(ALL_TARGETS)
    for loss in ["lml", "msl"]:
        responses = beside.random_codes(60, own, own + ADDED)
        added.check_training(loss, learning_rate, responses, torch.float64)


def check_smollm2(checks, tools, scratch, gguf):
    folder = scratch / "smollm2"
    folder.mkdir()
    exported = folder / "model"
    tools.run("export", gguf, exported)
    text = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        'The user has read the following books before: "The Left Hand of Darkness", "Dune", "1984" (1949)'
    )
    tokens = torch.tensor([Tokenizer.from_file(str(exported / "tokenizer.json")).encode(text).ids])
    model = Model(checks, tools, "SmolLM2-135M-Instruct", exported, folder, tokens)
    model.check_logits()
    theirs = beside.load_model(gguf.parent, gguf_file=gguf.name)
    model.compare("logits of the GGUF file as transformers reads it", model.our_logits(model=gguf), model.logits(theirs))
    theirs = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    ids = torch.tensor([theirs(text, add_special_tokens=False).input_ids])
    model.compare("tokens of a text", tokens.float(), ids.float())
    model.check_our_adapter(["q_proj", "v_proj"])
    model.check_their_adapter(ALL_TARGETS)
    for loss in ["lml", "msl"]:
        for dtype in [torch.float32, torch.float64]:
            model.check_training(loss, 1e-4, beside.random_responses(60, 2_000), dtype)
    check_added(model, 1e-4)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--example", required=True)
    parser.add_argument("--msl", required=True)
    parser.add_argument("--gguf", type=Path)
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    checks, tools = Checks(), Tools(arguments.example, arguments.msl)
    versions = [f"{module.__name__} {module.__version__}" for module in (torch, transformers, peft)]
    print(", ".join(versions))
    print(
        f"Largest difference, relative to the largest value at its position; at most {TOLERANCE}, and {DOUBLE_TOLERANCE} after "
        "steps in f64.\n"
    )
    with tempfile.TemporaryDirectory() as scratch:
        check_small(checks, tools, Path(scratch))
        if arguments.gguf:
            check_smollm2(checks, tools, Path(scratch), arguments.gguf)
        else:
            print("SmolLM2 was left out: scripts/get-smollm2 fetches it.")
    print(f"\n{checks.passed} comparisons passed, {checks.failed} failed.")
    raise SystemExit(checks.failed > 0)


main()
