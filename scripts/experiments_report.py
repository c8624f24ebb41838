"""Writes docs/experiments.md and the plots in docs/plots from what the runs of scripts/experiments left."""

import csv
import json
import math
import statistics
import subprocess
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLOTS = ROOT / "docs/plots"
NAMES = {"lml": "LML", "msl": "MSL, τ = 1", "ats": "MSL + ATS", "bear": "MSL + BEAR"}
# What is made of a user's rank (0 where the item is not in the list) and item NLL.
MEASURES = {
    "HR@10": lambda rank, nll: float(1 <= rank <= 10),
    "NDCG@10": lambda rank, nll: 1 / math.log2(rank + 1) if 1 <= rank <= 10 else 0.0,
    "item NLL": lambda rank, nll: nll,
}


def standard_error(values):
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def markdown(header, rows):
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(name, title, x, series, logarithmic=False):
    """Draws docs/plots/NAME.svg by the driver's example and returns the line that shows it."""
    PLOTS.mkdir(exist_ok=True)
    text = json.dumps({"title": title, "x": x, "series": list(series), "logarithmic": logarithmic})
    command = "cargo run --quiet --release -p candle-trie-driver --example plot".split()
    svg = subprocess.run(command, input=text, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    (PLOTS / f"{name}.svg").write_text(svg, encoding="utf-8")
    return f"![{title}](plots/{name}.svg)"


class Results:
    """What the seeds of one loss reached on so many rows."""

    def __init__(self, runs, loss, rows):
        self.runs, self.loss, self.rows = runs, loss, rows
        rate = runs.rate(rows)
        paths = {seed: runs.path(loss, rows, rate, seed) for seed in runs.experiment.seeds} if rate else {}
        self.paths = {seed: path for seed, path in paths.items() if (path / "vocabulary.json").exists()}
        self.rate = rate

    def users(self, decoder, measure, seeds=None):
        """For each test user the mean over the seeds."""
        tables = [self.table(seed, decoder, measure) for seed in seeds or self.paths]
        return [statistics.fmean(values) for values in zip(*tables)]

    def table(self, seed, decoder, measure):
        with open(self.paths[seed] / f"{decoder}.csv", encoding="utf-8") as file:
            return [MEASURES[measure](int(row["rank"] or 0), float(row["item_nll"])) for row in csv.DictReader(file)]

    def estimate(self, decoder, measure):
        """The mean, and its standard error over the seeds if there are several, else over the users."""
        seeds = [statistics.fmean(self.table(seed, decoder, measure)) for seed in self.paths]
        users = self.users(decoder, measure)
        return statistics.fmean(users), standard_error(seeds if len(seeds) > 1 else users)

    def difference(self, other, decoder, other_decoder, measure):
        """How much more than the other, user by user over the seeds that both have; its error over the users."""
        seeds = [seed for seed in self.paths if seed in other.paths]
        pairs = zip(self.users(decoder, measure, seeds), other.users(other_decoder, measure, seeds))
        differences = [mine - others for mine, others in pairs]
        base = statistics.fmean(other.users(other_decoder, measure, seeds))
        return statistics.fmean(differences), standard_error(differences), base

    def targets(self):
        """For each seed what its evaluation over the trie says of targets in training rows and of those in none."""
        evaluations = [self.runs.read(path, "trie.json") for path in self.paths.values()]
        return [evaluation["rows"][-1].get("targets") for evaluation in evaluations]

    def steps(self, path):
        with open(path / "metrics.jsonl", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def seconds(self):
        """The median time of a step, as `scripts/experiments time` measured it; NaN where it has not."""
        folder = self.runs.folder / f"time-{self.loss}"
        if not folder.exists():
            return math.nan
        steps = self.steps(folder)
        return statistics.median(step["tokens"] / step["tokens_per_second"] for step in steps)

    def validation(self, seed):
        """Step, seconds of training and validation item NLL of each look."""
        second = self.seconds()
        looks = [step for step in self.steps(self.paths[seed]) if "validation_nll" in step]
        return [(look["step"], look["step"] * second, look["validation_nll"]) for look in looks]


class Report:
    def __init__(self, runs):
        self.runs, self.experiment = runs, runs.experiment
        self.results = {}
        for rows in self.experiment.rows:
            found = {loss: Results(runs, loss, rows) for loss in self.experiment.losses}
            found = {loss: results for loss, results in found.items() if results.paths}
            if "lml" in found:
                self.results[rows] = found

    def baselines(self):
        """What reads no titles, as msl evaluate prints it, and the number of users."""
        first = next(iter(self.results.values()))["lml"]
        evaluation = self.runs.read(next(iter(first.paths.values())), "trie.json")
        sasrec = self.runs.read(self.runs.folder / "sasrec", "evaluation.json")
        rows = evaluation["rows"][:-1] + (sasrec["rows"][-1:] if sasrec else [])
        return rows, evaluation["users"]

    def measures_table(self):
        rows = []
        for baseline in self.baselines()[0]:
            keys = [measure.lower().replace(" ", "_") for measure in MEASURES]
            cells = [cell(baseline[key], baseline.get(f"{key}_error", 0.0)) for key in keys]
            rows.append([baseline["name"], "", "", "", *cells])
        for count, found in self.results.items():
            for loss, results in found.items():
                for decoder in ("trie", "vocabulary"):
                    cells = [cell(*results.estimate(decoder, measure)) for measure in MEASURES]
                    seeds = str(len(results.paths))
                    rows.append([NAMES[loss], f"{count:,}", decoder, f"{results.rate}, {seeds}", *cells])
        return markdown(["", "rows", "decoded over the", "learning rate, seeds", *MEASURES], rows)

    def difference_table(self):
        rows = []
        for count, found in self.results.items():
            for loss, results in found.items():
                if loss != "lml":
                    cells = []
                    for other in ("trie", "vocabulary"):
                        mean, error, base = results.difference(found["lml"], "trie", other, "NDCG@10")
                        percent = f"{100 * mean / base:+.0f} % ±{100 * error / base:.0f} %" if base else ""
                        cells += [f"{mean:+.4f} ±{error:.4f}", percent]
                    mean, error, _ = results.difference(found["lml"], "trie", "trie", "item NLL")
                    rows.append([NAMES[loss], f"{count:,}", *cells, f"{mean:+.3f} ±{error:.3f}"])
        header = ["compared with LML", "rows", "NDCG@10", "", "NDCG@10, LML over the vocabulary", "", "item NLL"]
        return markdown(header, rows)

    def targets_table(self):
        """The same of targets that occur in training rows and of those that occur in none, where that was told apart."""
        rows = []
        for count, found in self.results.items():
            for loss, results in found.items():
                if all(results.targets()):
                    cells = []
                    for kind in ("in_training", "not_in_training"):
                        for key in ("ndcg@10", "item_nll"):
                            seeds = [targets[kind][key] for targets in results.targets()]
                            cells.append(cell(statistics.fmean(seeds), standard_error(seeds)))
                    rows.append([NAMES[loss], f"{count:,}", *cells])
        kinds = [f"{measure}, {kind}" for kind in ("in training", "not") for measure in ("NDCG@10", "item NLL")]
        return markdown(["targets that occur in training rows, or in none", "rows", *kinds], rows) if rows else ""

    def time_table(self):
        """How soon a loss's validation item NLL passes the best that LML reaches; means over the seeds."""
        rows = []
        for count, found in self.results.items():
            for loss, results in found.items():
                times = []
                for seed in (seed for seed in results.paths if seed in found["lml"].paths):
                    *lml, best = min(found["lml"].validation(seed), key=lambda look: look[2])
                    passed = [look[:2] for look in results.validation(seed) if look[2] <= best]
                    times.append((*lml, *(passed[0] if passed else (math.nan, math.nan))))
                steps, seconds, own_steps, own_seconds = (statistics.fmean(column) for column in zip(*times))
                if loss != "lml":
                    cells = [f"{steps:.0f}", f"{own_steps:.0f}", f"{seconds:.1f}", f"{own_seconds:.1f}"]
                    cells.append(f"{seconds / own_seconds:.1f}×")
                    rows.append([NAMES[loss], f"{count:,}", *("–" if "nan" in cell else cell for cell in cells)])
        header = ["", "rows", "LML is at its best after steps", "passed after steps", "LML, s", "passed after s", "sooner"]
        return markdown(header, rows)

    def plots(self):
        name, title = self.experiment.name, self.experiment.title
        if len(self.results) > 1:
            for measure, key in [("NDCG@10", "ndcg"), ("item NLL", "nll")]:
                yield plot(f"{name}-{key}", f"{measure} by training rows", "training rows", self.by_rows(measure), True)
        for count in [count for count in self.results if count in (4000, 10000, 16000)]:
            timed = not math.isnan(self.results[count]["lml"].seconds())
            axis = "seconds" if timed else "steps"
            heading = f"validation item NLL by {axis} of training, {count:,} rows"
            yield plot(f"{name}-{count}-{axis}", heading, axis, self.by_time(count, timed))

    def by_rows(self, measure):
        lines = [("lml", "vocabulary")] + [(loss, "trie") for loss in self.experiment.losses]
        for loss, decoder in lines:
            points = [(c, *f[loss].estimate(decoder, measure)) for c, f in self.results.items() if loss in f]
            suffix = ", decoded over the vocabulary" if decoder == "vocabulary" else ""
            if not (suffix and measure == "item NLL"):
                yield {"name": NAMES[loss] + suffix, "points": points}
        key = measure.lower().replace(" ", "_")
        popularity = next(row for row in self.baselines()[0] if row["name"] == "popularity")
        ends = (min(self.results), max(self.results))
        yield {"name": "popularity", "points": [(x, popularity[key], 0.0) for x in ends], "baseline": True}

    def by_time(self, count, timed):
        for loss, results in self.results[count].items():
            looks = [results.validation(seed) for seed in results.paths]
            points = []
            for at in zip(*looks):
                steps, seconds, nll = zip(*at)
                points.append((statistics.fmean(seconds if timed else steps), statistics.fmean(nll), standard_error(nll)))
            yield {"name": NAMES[loss], "points": points}

    def text(self):
        options = self.experiment.train_options(self.experiment.rows[0], self.experiment.epochs)
        # Where Amazon's data lie on this machine says nothing to a reader.
        example = " ".join(f"$AMAZON/{Path(word).name}" if "/Amazon_" in word else word for word in options)
        example = example.replace(str(ROOT) + "/", "")
        plots = "\n\n".join(self.plots())
        return f"""## {self.experiment.title}

`scripts/experiments run {self.experiment.name}`: {self.baselines()[1]} test users; `msl train {example}`, and so on.

{plots}

{self.difference_table()}

{self.time_table()}

{self.measures_table()}

{self.targets_table()}
"""


def cell(mean, error):
    return f"{mean:.4f}" + (f" ±{error:.4f}" if error else "")


def write_report(all_runs):
    processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("model name")[1].split("\n")[0].strip("\t :")
    notes = (ROOT / "docs/experiments-notes.md").read_text(encoding="utf-8")
    opening = notes.split("<!-- results -->")
    reports = [report for report in map(Report, all_runs) if report.results]
    made = f"Made by `scripts/experiments report` on {date.today()} from runs on a machine of two cores ({processor})."
    sections = [opening[0].strip(), made, *(report.text().strip() for report in reports), opening[1].strip()]
    (ROOT / "docs/experiments.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
