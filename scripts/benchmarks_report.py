"""Writes docs/benchmarks.md from what the benchmarks left in a folder: see benchmarks beside this file."""

import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path

MODELS = {
    "SmolLM2-135M": (576, 49_152),
    "Qwen2.5-0.5B": (896, 151_936),
    "Llama-3.2-1B": (2048, 128_256),
    "Semantic IDs": (2048, 129_024),
}
WAYS = {
    "linear": "ours, linear",
    "linear, adaptive temperature": "ours, linear, adaptive temperature",
    "dense": "ours, head matmul and dense",
    "composed": "candle's own operations",
}
MEBIBYTE = 1 << 20


class Results:
    def __init__(self, folder):
        self.folder = folder
        self.figures = {}
        for line in (folder / "figures").read_text().splitlines():
            name, value = line.split("\t")
            self.figures[name] = float(value)

    def seconds(self, name):
        """criterion's median."""
        group, function = (part.replace("/", "_") for part in name.split("/", 1))
        path = self.folder / "criterion" / group / function / "new/estimates.json"
        return json.loads(path.read_text())["median"]["point_estimate"] / 1e9

    def pytorch(self):
        path = self.folder / "pytorch"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]

    def grouping(self):
        lines = (self.folder / "grouping").read_text().splitlines()
        return [line if line.startswith("|") else "" for line in lines if line.startswith("|") or not line]


def milliseconds(seconds):
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def table(header, rows):
    alignments = ["---"] + ["---:"] * (len(header) - 1)
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [header, alignments, *rows])


def verdict(wanted, measured, met):
    return [wanted, measured, "yes" if met else "**no**"]


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {platform.system()} on {platform.machine()}"


def output_of(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.strip()


def product_rate(results, model):
    """Floating-point operations a second, measured beside the model's linear way."""
    return results.figures["matrix product/flops"] / results.seconds(f"{model}/matrix product")


def linear_floor(results, model):
    """max(flops ÷ measured matmul rate, distinct head bytes ÷ measured bandwidth)."""
    rate = product_rate(results, model)
    bandwidth = results.figures["machine/read/bytes"] / results.seconds("machine/read")
    return max(
        results.figures[f"{model}/flops"] / rate, results.figures[f"{model}/head bytes"] / bandwidth
    )


def layer(results):
    parts = []
    for model, (width, vocabulary) in MODELS.items():
        floor = linear_floor(results, model)
        composed = results.seconds(f"{model}/composed")
        rows = []
        for way, label in WAYS.items():
            seconds = results.seconds(f"{model}/{way}")
            peak = results.figures[f"{model}/{way}/peak bytes"]
            rows.append(
                [
                    label,
                    milliseconds(seconds),
                    f"{composed / seconds:,.1f}",
                    f"{seconds / floor:,.2f}" if way.startswith("linear") else "",
                    f"{peak / MEBIBYTE:,.1f}",
                ]
            )
        rows.append(["floor of linear", milliseconds(floor), "", "1.00", ""])
        frozen = results.figures[f"{model}/frozen head bytes"] / MEBIBYTE
        header = ["way", "ms", "× faster than candle's", "× its floor", "peak MiB"]
        parts.append(
            f"### {model}: H = {width:,}, V = {vocabulary:,}\n\n{table(header, rows)}\n\n"
            f"`FrozenHead` keeps {frozen:,.1f} MiB from batch to batch. Matrix products beside it: "
            f"{product_rate(results, model) / 1e9:,.0f} GFLOP/s."
        )
    return "\n\n".join(parts)


def given_logits(results):
    fill = results.seconds("given logits/fill of reused memory")
    lazy = results.seconds("given logits/writes into lazily zeroed memory")
    rows = []
    for name, floor in [
        ("fill of reused memory", fill),
        ("gradient into reused memory", fill),
        ("writes into lazily zeroed memory", lazy),
        ("gradient into fresh memory", lazy),
        ("forward", None),
        ("forward and backward", None),
    ]:
        seconds = results.seconds(f"given logits/{name}")
        rows.append([name, milliseconds(seconds), f"{seconds / floor:.2f}" if floor else ""])
    return table(["", "ms", "× its floor"], rows)


def vocabularies(results):
    names = [name.split("/") for name in results.figures if name.startswith("vocabulary/")]
    return [int(size) for _, size, figure in names if figure == "seconds"]


def vocabulary(results):
    rows = [
        [
            f"{size:,}",
            milliseconds(results.figures[f"vocabulary/{size}/seconds"]),
            f"{results.figures[f'vocabulary/{size}/peak bytes'] / MEBIBYTE:.1f}",
        ]
        for size in vocabularies(results)
    ]
    return table(["V", "ms", "peak MiB"], rows)


def trie(results):
    rows = []
    counts = [int(name.split("/")[1]) for name in results.figures if name.endswith("/input bytes")]
    for count in counts:
        figure = lambda name: results.figures[f"trie/{count}/{name}"]
        once = results.figures.get(f"trie/{count}/seconds")
        seconds = once or results.seconds(f"trie/{count}")
        rows.append(
            [
                f"{count:,}" + (" (once)" if once else ""),
                f"{seconds:,.3f}",
                f"{figure('nodes'):,.0f}",
                f"{figure('set bytes') / figure('nodes'):.2f}",
                f"{figure('input bytes') / MEBIBYTE:,.0f}",
                f"{figure('peak bytes') / figure('input bytes'):.2f}",
            ]
        )
    header = ["paths", "s", "nodes", "bytes a node", "input MiB", "peak ÷ input"]
    return table(header, rows)


def pytorch(results):
    rows = []
    for result in results.pytorch():
        seconds = result["seconds"]
        for label, theirs, ours in [
            ("head + published loss / linear", "pytorch", "linear"),
            ("head alone / linear", "pytorch_head", "linear"),
            ("head + published loss / head + dense", "pytorch", "dense"),
            ("published loss / dense, given logits", "pytorch_given_logits", "given_logits"),
        ]:
            ratio = f"{seconds[theirs] / seconds[ours]:,.1f}"
            row = [label, milliseconds(seconds[theirs]), milliseconds(seconds[ours]), ratio]
            rows.append([f"{result['model']}: {row[0]}", *row[1:]])
    versions = {f"PyTorch {result['torch']}" for result in results.pytorch()}
    return f"{', '.join(versions)}\n\n" + table(["", "PyTorch ms", "ours ms", "ratio"], rows)


def wanted(results):
    smol = "SmolLM2-135M"
    linear = results.seconds(f"{smol}/linear")
    faster = results.seconds(f"{smol}/composed") / linear
    of_floor = linear / linear_floor(results, smol)
    memory = (
        results.figures[f"{smol}/linear/peak bytes"] / results.figures[f"{smol}/composed/peak bytes"]
    )
    reused = results.seconds("given logits/gradient into reused memory")
    reused /= results.seconds("given logits/fill of reused memory")
    fresh = results.seconds("given logits/gradient into fresh memory")
    fresh /= results.seconds("given logits/writes into lazily zeroed memory")
    flat = [results.figures[f"vocabulary/{size}/seconds"] for size in vocabularies(results)]
    million, ten = results.seconds("trie/1000000"), results.seconds("trie/10000000")
    peak = results.figures["trie/10000000/peak bytes"] / results.figures["trie/10000000/input bytes"]
    rows = [
        verdict(f"linear ≥ 1,000 × candle's own operations ({smol})", f"{faster:,.0f} ×", faster >= 1000),
        verdict(f"linear within 2 × its floor ({smol})", f"{of_floor:.2f} ×", of_floor <= 2),
        verdict("its memory < 1 % of candle's own operations'", f"{memory:.2%}", memory < 0.01),
        verdict("gradient of given logits ≤ 1.3 × a fill of reused memory", f"{reused:.2f} ×", reused <= 1.3),
        verdict("… and in fresh memory as lazily zeroed memory allows", f"{fresh:.2f} ×", fresh <= 1.3),
        verdict("linear flat from V = 16 k to 2 M", f"{max(flat) / min(flat):.2f} ×", max(flat) < 1.3 * min(flat)),
        verdict("trie of 1 M paths in 0.1 s", f"{million:.3f} s", million <= 0.1),
        verdict("trie of 10 M paths in 1 s", f"{ten:.2f} s", ten <= 1),
        verdict("… within 4 × its input", f"{peak:.2f} ×", peak <= 4),
    ]
    for result in results.pytorch():
        if result["model"] == smol:
            ratio = result["ratio_linear"]
            rows.append(verdict(f"linear ≥ 600 × PyTorch's head + published loss ({smol})", f"{ratio:,.0f} ×", ratio >= 600))
        else:
            ratio = result["ratio_linear_to_head_alone"]
            rows.append(verdict(f"linear ≥ 600 × PyTorch's head alone ({result['model']})", f"{ratio:,.0f} ×", ratio >= 600))
    return table(["wanted", "measured", "met"], rows)


def main():
    results = Results(Path(sys.argv[1]))
    rate = product_rate(results, "SmolLM2-135M")
    bandwidth = results.figures["machine/read/bytes"] / results.seconds("machine/read")
    width, _ = MODELS["SmolLM2-135M"]
    template = (Path(__file__).parent / "benchmarks_report.md").read_text()
    print(
        template.format(
            machine=processor(),
            rust=output_of("rustc", "--version"),
            date=date.today().isoformat(),
            rate=f"{rate / 1e9:,.0f}",
            bandwidth=f"{bandwidth / 1e9:,.1f}",
            fill=milliseconds(results.seconds("machine/fill")),
            rows=f"{results.figures['rows']:,.0f}",
            logits=f"{results.figures['SmolLM2-135M/flops'] / (4 * width):,.0f}",
            tokens=f"{results.figures['SmolLM2-135M/head bytes'] / (4 * width):,.0f}",
            wanted=wanted(results),
            layer=layer(results),
            given_logits=given_logits(results),
            vocabulary=vocabulary(results),
            trie=trie(results),
            pytorch=pytorch(results) if results.pytorch() else "Left out of this run.",
            grouping="\n".join(results.grouping()).strip(),
        ),
        end="",
    )


if __name__ == "__main__":
    main()
