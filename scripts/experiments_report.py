"""Writes docs/experiments.md and the plots in docs/plots from what the runs of scripts/experiments left."""

import csv
import functools
import itertools
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
    "HR@20": lambda rank, nll: float(1 <= rank <= 20),
    "NDCG@10": lambda rank, nll: 1 / math.log2(rank + 1) if 1 <= rank <= 10 else 0.0,
    "item NLL": lambda rank, nll: nll,
}
# The quantile of the normal distribution for an interval of 95 %.
QUANTILE = 1.96


def standard_error(values):
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0


def mean_and_error(table):
    """The mean of one row of values for each seed, with one column for each user, and its standard error if both seeds and
    users are drawn at random: the variances of the two means, less what both count of the rest. Over the users alone where
    there is one seed."""
    seeds, users = [statistics.fmean(row) for row in table], [statistics.fmean(column) for column in zip(*table)]
    mean = statistics.fmean(seeds)
    variance = standard_error(seeds) ** 2 + standard_error(users) ** 2
    if len(seeds) > 1:
        rest = sum((value - seed - user + mean) ** 2 for row, seed in zip(table, seeds) for value, user in zip(row, users))
        degrees, most = (len(seeds) - 1) * (len(users) - 1), max(standard_error(seeds), standard_error(users))
        variance = max(variance - rest / degrees / (len(seeds) * len(users)), most**2)
    return mean, math.sqrt(variance)


def gain(mine, others):
    """By how many per cent the mean of a table is above that of another of the same seeds and users, and the interval of 95 %
    from the error of the logarithm of their ratio."""
    mean, base = mean_and_error(mine)[0], mean_and_error(others)[0]
    if not mean or not base:
        return ""
    relative = [[m / mean - o / base for m, o in zip(*rows)] for rows in zip(mine, others)]
    error = mean_and_error(relative)[1]
    low, middle, high = (100 * (mean / base * math.exp(z * error) - 1) for z in (-QUANTILE, 0, QUANTILE))
    return f"{middle:+.0f} % ({low:+.0f} to {high:+.0f})"


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
    """What the seeds of one loss reached on so many rows, at a learning rate."""

    def __init__(self, runs, loss, rows, rate):
        self.runs, self.loss, self.rows = runs, loss, rows
        paths = {seed: runs.path(loss, rows, rate, seed) for seed in runs.seeds()} if rate else {}
        self.paths = {seed: path for seed, path in paths.items() if (path / "trie.json").exists()}
        self.rate = rate

    def table(self, decoder, measure, seeds=None):
        """A row for each seed, with the value of each test user."""
        return [[MEASURES[measure](*rank) for rank in self.ranks(seed, decoder)] for seed in seeds or self.paths]

    def decoders(self):
        """What all of its seeds have been decoded over."""
        there = lambda decoder: all((path / f"{decoder}.json").exists() for path in self.paths.values())
        return [decoder for decoder in ("trie", "vocabulary") if there(decoder)]

    @functools.cache
    def ranks(self, seed, decoder):
        with open(self.paths[seed] / f"{decoder}.csv", encoding="utf-8") as file:
            return [(int(row["rank"] or 0), float(row["item_nll"])) for row in csv.DictReader(file)]

    def items(self):
        """The item that came next, of each test user."""
        with open(next(iter(self.paths.values())) / "trie.csv", encoding="utf-8") as file:
            return [row["item_id"] for row in csv.DictReader(file)]

    def pair(self, other, other_decoder, measure):
        """Both tables, of the seeds that both have; this one's lists are decoded over the trie."""
        seeds = [seed for seed in self.paths if seed in other.paths]
        return self.table("trie", measure, seeds), other.table(other_decoder, measure, seeds)

    def best_validation(self):
        """For each seed the lowest item NLL on the validation rows, at any step."""
        return {seed: self.runs.read(path, "trained.json")["best"]["item_nll"] for seed, path in self.paths.items()}

    def checkpoints(self):
        """The steps whose checkpoints count, of how many."""
        steps = sorted({self.runs.chosen(path) for path in self.paths.values()})
        last = self.runs.read(next(iter(self.paths.values())), "trained.json")["steps"]
        return f"{'–'.join(map(str, sorted({steps[0], steps[-1]})))} of {last}"

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
        """Step, seconds of training and validation item NLL at each evaluation."""
        second = self.seconds()
        evaluated = [step for step in self.steps(self.paths[seed]) if "validation_nll" in step]
        return [(step["step"], step["step"] * second, step["validation_nll"]) for step in evaluated]


class Report:
    def __init__(self, runs):
        self.runs, self.experiment = runs, runs.experiment
        self.results = {}
        for rows in runs.rows():
            found = {loss: Results(runs, loss, rows, runs.rate(rows)) for loss in self.experiment.losses}
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
            rows.append([baseline["name"], *[""] * 5, *cells])
        for count, found in self.results.items():
            for loss, results in found.items():
                for decoder in results.decoders():
                    cells = [cell(*mean_and_error(results.table(decoder, measure))) for measure in MEASURES]
                    made = [results.rate, str(len(results.paths)), results.checkpoints()]
                    rows.append([NAMES[loss], f"{count:,}", decoder, *made, *cells])
        header = ["", "rows", "decoded over the", "learning rate", "seeds", "checkpoints, steps", *MEASURES]
        return markdown(header, rows)

    def pairs(self):
        """Each loss beside LML, on each number of rows."""
        for count, found in self.results.items():
            for loss, results in found.items():
                if loss != "lml":
                    yield [NAMES[loss], f"{count:,}"], results, found["lml"]

    def difference_table(self):
        rows = []
        for name, results, lml in self.pairs():
            cells = []
            for decoder in ("trie", "vocabulary"):
                pair = results.pair(lml, decoder, "NDCG@10") if decoder in lml.decoders() else None
                cells += [change(*pair, 4), gain(*pair)] if pair else ["", ""]
            mine, others = results.best_validation(), lml.best_validation()
            best = [[mine[seed] - others[seed] for seed in mine if seed in others]]
            cells += [change(*results.pair(lml, "trie", "item NLL"), 3), signed(*mean_and_error(best), 3)]
            rows.append([*name, *cells])
        lists = ["NDCG@10", "gain (95 %)", "NDCG@10, LML over the vocabulary", "gain (95 %)"]
        return markdown(["compared with LML", "rows", *lists, "item NLL", "best item NLL in validation"], rows)

    def own_rates_table(self):
        """Each loss at the learning rate that suits itself, where every rate was tried with it."""
        tried = len(self.experiment.rates) > 1 and not self.experiment.rate_rows
        rows = []
        for count, found in self.results.items() if tried else ():
            for loss in found:
                own = Results(self.runs, loss, count, self.runs.rate(count, loss))
                if loss != "lml" and own.paths:
                    gains = [gain(*own.pair(found["lml"], decoder, "NDCG@10")) for decoder in found["lml"].decoders()]
                    mean = cell(*mean_and_error(own.table("trie", "NDCG@10")))
                    rows.append([NAMES[loss], f"{count:,}", own.rate, found["lml"].rate, mean, *gains])
        lists = ["NDCG@10", "gain over LML (95 %)", "gain over LML over the vocabulary (95 %)"]
        header = ["each at its own learning rate", "rows", "learning rate", "of LML", *lists]
        return markdown(header, rows) if rows else ""

    def popularity_table(self):
        """The differences from LML by how often the item that came next occurs in the data, as the users' quartiles."""
        count = next((count for count in (4000, 10000) if count in self.results), max(self.results))
        counts, items = self.runs.experiment.item_counts(), self.results[count]["lml"].items()
        edges = [-1, *sorted(set(statistics.quantiles([counts[item] for item in items], n=4))), math.inf]
        rows, header = [], [f"difference from LML, {count:,} rows"]
        for low, high in itertools.pairwise(edges):
            least, most = math.floor(low) + 1, math.floor(high) if high < math.inf else None
            within = [least <= counts[item] and (most is None or counts[item] <= most) for item in items]
            times = f"{least}" if least == most else f"{least} and more" if most is None else f"{least} to {most}"
            header += [f"NDCG@10, {times} times ({sum(within)} users)", "item NLL"]
            rows.append(within)
        lines = []
        for loss, results in self.results[count].items():
            cells = []
            for within in rows:
                for measure, digits in (("NDCG@10", 4), ("item NLL", 3)):
                    tables = results.pair(self.results[count]["lml"], "trie", measure)
                    mine, others = ([list(itertools.compress(row, within)) for row in table] for table in tables)
                    cells.append(f"{mean_and_error(mine)[0]:.{digits}f}" if loss == "lml" else change(mine, others, digits))
            lines.append([NAMES[loss] + (" itself" if loss == "lml" else ""), *cells])
        return markdown(header, lines)

    def targets_table(self):
        """The same of targets that occur in training rows and of those that occur in none, where that was told apart."""
        rows = []
        for count, found in self.results.items():
            for loss, results in found.items():
                if all(results.targets()):
                    cells = []
                    for kind in ("in_training", "not_in_training"):
                        for key in ("ndcg@10", "item_nll"):
                            cells.append(cell(statistics.fmean(targets[kind][key] for targets in results.targets()), 0))
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
                    *lml, best = min(found["lml"].validation(seed), key=lambda evaluation: evaluation[2])
                    passed = [(step, second) for step, second, nll in results.validation(seed) if nll <= best]
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
            tables = [(count, found[loss].table(decoder, measure)) for count, found in self.results.items() if loss in found]
            points = [(count, *mean_and_error(table)) for count, table in tables]
            suffix = ", decoded over the vocabulary" if decoder == "vocabulary" else ""
            if not (suffix and measure == "item NLL"):
                yield {"name": NAMES[loss] + suffix, "points": points}
        key = measure.lower().replace(" ", "_")
        popularity = next(row for row in self.baselines()[0] if row["name"] == "popularity")
        ends = (min(self.results), max(self.results))
        yield {"name": "popularity", "points": [(x, popularity[key], 0.0) for x in ends], "baseline": True}

    def by_time(self, count, timed):
        for loss, results in self.results[count].items():
            validations = [results.validation(seed) for seed in results.paths]
            points = []
            for at in zip(*validations):
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

{self.own_rates_table()}

{self.popularity_table()}

{self.time_table()}

{self.measures_table()}

{self.targets_table()}
"""


def cell(mean, error):
    return f"{mean:.4f}" + (f" ±{error:.4f}" if error else "")


def signed(mean, error, digits):
    return f"{mean:+.{digits}f}" + (f" ±{error:.{digits}f}" if error else "")


def change(mine, others, digits):
    """How much one table's mean is above another's of the same seeds and users, pair by pair."""
    return signed(*mean_and_error([[m - o for m, o in zip(*rows)] for rows in zip(mine, others)]), digits)


def overview(reports):
    """The gain of every loss on all data, over LML decoded as it ranks best."""
    rows = []
    for report in reports:
        for count, found in report.results.items():
            lml = found["lml"]
            means = {decoder: mean_and_error(lml.table(decoder, "NDCG@10"))[0] for decoder in lml.decoders()}
            decoder = max(means, key=means.get)
            losses = [gain(*found[loss].pair(lml, decoder, "NDCG@10")) if loss in found else "" for loss in ("msl", "ats", "bear")]
            rows.append([report.experiment.title, f"{count:,}", f"{means[decoder]:.4f}", decoder, *losses])
    header = ["model and data", "rows", "NDCG@10 of LML", "decoded over the", *(NAMES[loss] for loss in ("msl", "ats", "bear"))]
    return markdown(header, rows)


def write_report(all_runs):
    notes = (ROOT / "docs/experiments-notes.md").read_text(encoding="utf-8")
    opening = notes.split("<!-- results -->")
    reports = [report for report in map(Report, all_runs) if report.results]
    opening[0] = opening[0].replace("<!-- overview -->", overview(reports))
    made = f"Made by `scripts/experiments report` on {date.today()}."
    sections = [opening[0].strip(), made, *(report.text().strip() for report in reports), opening[1].strip()]
    (ROOT / "docs/experiments.md").write_text("\n\n".join(sections) + "\n", encoding="utf-8")
