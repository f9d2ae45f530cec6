"""Draws losses, evaluations, learning rate and speed of training runs from the JSON lines in their log folders.

    python tools/plot_log.py ./output -o loss.png

Every run is a curve over the train step. A run that was resumed is one curve: from the step where it went on, the later
values count.
"""

import suite  # noqa: F401

# isort: split

import json
import math
import os
import re
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from system.command_line import ArgumentParser
from system.errors import UserError
from system.input_files import open_input, reading
from system.output_files import atomic_file, check_can_write
from training import run_folder
from util import run_script

LOG_FILE = re.compile(r"metrics-.*\.jsonl")
FORMATS = ("png", "svg", "pdf")

# Key in a JSON line -> title of its panel. Losses are those keys that end in _loss.
LOSS_TITLES = {"total_loss": "Loss", "mlm_loss": "Masked language model loss", "nsp_loss": "Next sentence loss"}
OTHER_TITLES = {"learning_rate": "Learning rate", "sentences_per_sec": "Sentences per second"}
STEP = "train_step"
# The metrics of evaluations begin so; those that are losses of training are drawn beside these.
EVALUATION = "eval_"
LOSSES_EVALUATED = {
    "total_loss": "eval_loss",
    "mlm_loss": "eval_masked_lm_loss",
    "nsp_loss": "eval_next_sentence_loss",
}

# Told apart by people with any kind of colour blindness: Okabe and Ito's colours, then the same with dashes.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", "-.", ":")

LARGEST = 1e100  # what is larger cannot be drawn, and counts as infinite
MAX_RUNS = 500  # a picture cannot be much higher
MAX_LOSSES = 12  # beside those of this suite; each has a panel
MAX_POINTS = 1000  # of a curve; a picture has no room for more
WINDOW_FRACTION = 0.02  # of a curve's points, over which its bold line is the mean
MIN_SMOOTHED = 50  # points that a curve needs to have such a line
MAX_MARKED = 30  # points of a curve, at most, that are marked one by one


class Run(NamedTuple):
    """A curve for each of `values`: name -> float array, over `steps`. `resumed` are steps at which it went on.

    `metrics` are what evaluations have found, over `evaluated` steps.
    """

    name: str
    steps: np.ndarray
    values: dict[str, np.ndarray]
    resumed: list[int]
    evaluated: np.ndarray
    metrics: dict[str, np.ndarray]


def main():
    arguments = parse_arguments()
    log_dirs = [found for folder in arguments.log_dirs for found in find_log_dirs(folder)]
    runs = [run for log_dir in log_dirs for run in read_log_dir(log_dir, len(log_dirs) > 1)]
    if not runs:
        raise UserError(f"{', '.join(arguments.log_dirs)}: no run has logged an iteration yet")
    figure = draw(runs)
    with atomic_file(arguments.output) as file, warnings.catch_warnings():
        # A folder's name may have characters that the font lacks.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        figure.savefig(file, format=output_format(arguments.output), dpi=130)
    print(f"runs: {len(runs)}, in {arguments.output}")


def parse_arguments():
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "log_dirs", nargs="+", metavar="log_dir", help="what the runs had as --log_dir, or a folder above"
    )
    parser.add_argument(
        "-o", "--output", required=True, metavar="FILE", help=f"the picture to write: .{', .'.join(FORMATS)}"
    )
    arguments = parser.parse_args()
    if output_format(arguments.output) not in FORMATS:
        parser.error(f"--output={arguments.output}: the name should end in .{', .'.join(FORMATS)}")
    check_can_write("--output", arguments.output)
    return arguments


def output_format(path):
    """The format of a picture by the end of its name: `png`, say."""
    return Path(path).suffix.removeprefix(".").lower()


def find_log_dirs(folder):
    """The folders into which runs have logged, `folder` itself and those below it, sorted.

    Raises UserError if there is none.
    """
    with reading(folder, "folder"):
        os.listdir(folder)
    found = sorted(path for path, _, files in os.walk(folder) if any(map(LOG_FILE.fullmatch, files)))
    if not found:
        raise UserError(
            f"{folder}: has no file metrics-*.jsonl, nor has a folder below it; give what a training run had as "
            "--log_dir"
        )
    return found


def read_log_dir(log_dir, is_one_of_several):
    """The Runs that have logged into the folder. Files that no run claims are a run each."""
    folder = Path(log_dir)
    files = sorted(path.name for path in folder.iterdir() if LOG_FILE.fullmatch(path.name))
    groups = {run.name: content["metrics"] for run, content in run_folder.read_runs(log_dir).items()}
    claimed = {name for names in groups.values() for name in names}
    groups.update({Path(name).stem: [name] for name in files if name not in claimed})
    runs = []
    for name, names in groups.items():
        run = read_run(name, [folder / file for file in names if file in files])
        if run is not None:
            runs.append(run)
    if is_one_of_several:
        return [run._replace(name=log_dir if len(runs) == 1 else os.path.join(log_dir, run.name)) for run in runs]
    return runs


def read_run(name, paths):
    """The Run that has written `paths`, in this order; None if it has logged nothing.

    Raises UserError if its losses have different names.
    """
    lines = []
    resumed = []
    for path in paths:
        later = read_lines(path)
        first_step = next((line[STEP] for line in later if not is_evaluation(line)), None)
        if first_step is not None and lines:
            lines = [line for line in lines if line[STEP] < first_step]
            if lines:
                resumed.append(first_step)
        lines += later
    evaluations = [line for line in lines if is_evaluation(line)]
    lines = [line for line in lines if not is_evaluation(line)]
    if not lines:
        return None
    keys = [*LOSS_TITLES, *OTHER_TITLES]
    others = sorted({key for line in lines for key in line if key.endswith("_loss") and key not in keys})
    if len(others) > MAX_LOSSES:
        raise UserError(f"{paths[0]}: has {len(others)} kinds of losses; the file is damaged or not a training run's")
    keys += others
    metrics = sorted({key for line in evaluations for key in line if key.startswith(EVALUATION)})
    return Run(name, *columns(lines, keys), resumed, *columns(evaluations, metrics[:MAX_LOSSES]))


def columns(lines, keys):
    """(the steps of the lines, key -> their values) as float arrays, NaN where a line lacks a key; not if all do."""
    values = {key: np.array([line.get(key, np.nan) for line in lines], float) for key in keys}
    steps = np.array([line[STEP] for line in lines], float)
    return steps, {key: array for key, array in values.items() if not np.isnan(array).all()}


def is_evaluation(line):
    """Whether a line, a dict, is of an evaluation and not of an iteration."""
    return any(key.startswith(EVALUATION) for key in line)


def read_lines(path):
    """The JSON lines of a file as dicts of numbers. A last line that is not whole, as a kill leaves it, is left out.

    Raises UserError for any other that is not JSON of a training run.
    """
    lines = []
    with reading(path), open_input(path, errors="replace") as file:
        for number, text in enumerate(file, start=1):
            if text.endswith("\n"):
                lines.append(parse_line(text, f"{path}, line {number}"))
    return lines


def parse_line(text, place):
    """The numbers in a JSON line; raises UserError unless it is an iteration's."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{place}: not JSON; the file is damaged or not a training run's") from None
    if not isinstance(line, dict) or type(line.get(STEP)) is not int or not 0 <= line[STEP] < 2**53:
        raise UserError(f"{place}: has no {STEP}; the file is damaged or not a training run's")
    values = {key: value for key, value in line.items() if type(value) is float}
    return {STEP: line[STEP]} | {key: x if abs(x) < LARGEST else x * math.inf for key, x in values.items()}


def draw(runs):
    """A Figure with a panel for every quantity and a curve for every run. Raises UserError if there are too many."""
    keys = [key for key in LOSS_TITLES if any(key in run.values for run in runs)]
    others = sorted({key for run in runs for key in run.values} - set(keys) - set(OTHER_TITLES))
    metrics = {key for run in runs for key in run.metrics} - {LOSSES_EVALUATED.get(key) for key in keys}
    if len(runs) > MAX_RUNS or len(others) > MAX_LOSSES:
        raise UserError(
            f"{len(runs)} runs with {len(others)} other kinds of losses are more than a picture can show; give fewer "
            "log folders"
        )
    keys += others + sorted(metrics)[:MAX_LOSSES]
    wide, narrow = keys[:1], [*keys[1:], *OTHER_TITLES]
    num_rows = -(-len(narrow) // 2)
    figure = Figure(figsize=(11, 0.2 * len(runs) + 3.6 + 2.3 * num_rows), layout="constrained")
    grid = figure.add_gridspec(1 + num_rows, 2, height_ratios=[1.6] + [1] * num_rows)
    places = [grid[0, :] for _ in wide] + [grid[1 + index // 2, index % 2] for index in range(len(narrow))]
    for key, place in zip(wide + narrow, places, strict=True):
        draw_panel(figure.add_subplot(place), key, runs)
    add_legend(figure, runs)
    return figure


def draw_panel(axes, key, runs):
    """Draws the curves of one quantity."""
    title = LOSS_TITLES.get(key) or OTHER_TITLES.get(key) or key.replace(EVALUATION, "Evaluation: ")
    axes.set_title(title, loc="left", fontsize=11)
    for index, run in enumerate(runs):
        if key in run.values:
            draw_curve(axes, key, run.steps, run.values[key], **style(index))
            for step in run.resumed:
                axes.axvline(step, color=style(index)["color"], linewidth=0.8, linestyle=":", alpha=0.7)
        metric = run.metrics.get(LOSSES_EVALUATED.get(key, key))
        if metric is not None:
            marker = "s" if len(metric) <= MAX_MARKED else None
            axes.plot(
                run.evaluated, metric, "--", color=style(index)["color"], linewidth=1, marker=marker, markersize=4
            )
    if key in OTHER_TITLES:
        axes.set_ylim(bottom=0)
    if key == "sentences_per_sec":
        # Saving a snapshot makes a step slow, and nothing makes one fast: what is far above the rest is no speed.
        speeds = [run.values[key][np.isfinite(run.values[key])] for run in runs if key in run.values]
        highest = max((np.percentile(values, 95) for values in speeds if len(values)), default=1)
        axes.set_ylim(0, 1.15 * highest)
    if key == "learning_rate":
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    axes.set_xlabel("train step", fontsize=9)
    axes.tick_params(labelsize=9)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def draw_curve(axes, key, steps, values, color, linestyle):
    """Draws all values in pale, as far as they can be told apart, and what they are on average in bold."""
    is_finite = np.isfinite(values)
    steps, values = steps[is_finite], values[is_finite]
    if key == "learning_rate" or len(steps) < MIN_SMOOTHED:
        marker = "o" if len(steps) <= MAX_MARKED else None
        axes.plot(steps, values, color=color, linestyle=linestyle, linewidth=1.6, marker=marker, markersize=3.5)
        return
    width = max(1, len(steps) // MAX_POINTS)
    low, high = (reduce_groups(function, values, width) for function in (np.minimum, np.maximum))
    groups_steps = group_means(steps, width)
    if width > 1:
        axes.fill_between(groups_steps, low, high, color=color, alpha=0.18, linewidth=0)
    else:
        axes.plot(steps, values, color=color, alpha=0.3, linewidth=0.8)
    if key == "sentences_per_sec":
        # The mean speed is that of the mean time.
        means = 1 / running_mean(group_means(1 / np.maximum(values, 1e-9), width))
    else:
        means = running_mean(group_means(values, width))
    axes.plot(groups_steps, means, color=color, linestyle=linestyle, linewidth=1.8)


def reduce_groups(function, values, width):
    """`function`, a ufunc, over every `width` values, the last few included."""
    return function.reduceat(values, np.arange(0, len(values), width))


def group_means(values, width):
    """The means of every `width` values, the last few included."""
    starts = np.arange(0, len(values), width)
    return np.add.reduceat(values, starts) / np.diff(np.append(starts, len(values)))


def running_mean(values):
    """The mean of every value and its neighbours on both sides, WINDOW_FRACTION of all."""
    reach = max(1, round(WINDOW_FRACTION * len(values) / 2))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    positions = np.arange(len(values))
    begin, end = np.maximum(positions - reach, 0), np.minimum(positions + reach + 1, len(values))
    return (sums[end] - sums[begin]) / (end - begin)


def style(index):
    """How the curves of run `index` look: arguments of Matplotlib's plot."""
    return {
        "color": COLORS[index % len(COLORS)],
        "linestyle": DASHES[index // len(COLORS) % len(DASHES)],
    }


def add_legend(figure, runs):
    """Names the runs above the panels."""
    handles = [Line2D([], [], linewidth=2, **style(index)) for index in range(len(runs))]
    labels = [describe(run) for run in runs]
    if any(run.resumed for run in runs):
        handles.append(Line2D([], [], color="0.5", linewidth=0.8, linestyle=":"))
        labels.append("resumed")
    if any(run.metrics for run in runs):
        handles.append(Line2D([], [], color="0.5", linewidth=1, linestyle="--", marker="s", markersize=4))
        labels.append("evaluation")
    legend = figure.legend(
        handles, labels, loc="outside upper left", ncols=1 + (len(runs) > 6), frameon=False, fontsize=9
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def describe(run):
    """The run's name, and whether its loss is no number any more in the end."""
    # matplotlib leaves out names that begin with _.
    name = f"./{run.name}" if run.name.startswith("_") else run.name
    loss = run.values.get("total_loss")
    if loss is not None and not np.isfinite(loss[-1]):
        first = run.steps[np.flatnonzero(np.isfinite(loss))[-1] + 1 if np.isfinite(loss).any() else 0]
        return f"{name} (no finite loss from step {first:,.0f})"
    return name


if __name__ == "__main__":
    run_script(main)
