"""An evaluation's figures as files that people look at: a table, plots, and one HTML page that needs no network."""

import base64
import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from tabulate import tabulate

from finetuning.files import to_json

matplotlib.use("Agg")  # draws to files, so no display is needed
import matplotlib.pyplot as plt

HUMAN = "human"
FEW_WORDS = 2000  # below, the tables warn of themselves
_SAMPLES_SHOWN = 6
_INK, _ACCENT, _HUMAN_COLOUR = "#1f2a44", "#b3402a", "#3b7a57"
_STAGE_COLOURS = ["#8e9aaf", "#d18f3f", "#b3402a", "#7b2d43", "#3d1c33"]


@dataclass
class Report:
    """All that the report shows. A row is a stage or the human songs; a figure that there is none of is None or absent."""

    run_name: str
    made_at: str
    settings: dict[str, Any]
    base_model: str
    rows: list[dict[str, Any]]
    prompts: int
    prompts_compared: int  # those that everyone continued by a word at least
    different_prompts: int  # those that differ come in rounds
    words_compared: int
    parts: list[int]
    held_out_songs: int
    records: dict[int, dict[str, Any]]  # stage -> its stage.json
    training: dict[int, list[dict[str, Any]]]  # stage -> the lines of its metrics.jsonl
    samples: list[dict[str, Any]]
    versions: dict[str, str]

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The rows of the stages, without the human one."""
        return [row for row in self.rows if row["stage"] != HUMAN]


@dataclass(frozen=True)
class Column:
    """A figure of the table: its key in a row, its heading, digits, and what it says."""

    key: str
    heading: str
    digits: int
    meaning: str


COLUMNS = [
    Column("perplexity", "Perplexity", 1, "how surprised the model is by held-out songs, a token; lower is better"),
    Column("perplexity_of_own_texts", "of own texts", 1, "the same on what it wrote itself; it rewards monotony"),
    Column("distinct_1", "Distinct-1", 3, "different words / words, over all texts of a round of prompts"),
    Column("distinct_2", "Distinct-2", 3, "the same for pairs of words"),
    Column("distinct_3", "Distinct-3", 3, "the same for three words in a row"),
    Column("lexical_diversity", "Lexical diversity", 3, "different words / words of a text, mean over texts"),
    Column("coherence", "Local coherence", 3, "mean cosine of neighbouring lines' embeddings, mean over texts"),
    Column("texts_with_two_units", "of texts", 0, "how many texts had two lines, and so a coherence"),
]


def label(stage: str) -> str:
    """A row's name: '0 (base)', '1', ..., 'human songs'."""
    return {"0": "0 (base)", HUMAN: "human songs"}.get(stage, stage)


def shown(value: float | None, digits: int) -> str:
    """A figure as the table has it; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"


def table(report: Report) -> tuple[list[str], list[list[str]]]:
    """The headings and the rows of the main table."""
    headings = ["Stage", *(column.heading for column in COLUMNS)]
    return headings, [
        [label(row["stage"]), *(shown(row.get(column.key), column.digits) for column in COLUMNS)] for row in report.rows
    ]


def matrix(report: Report) -> tuple[list[str], list[list[str]]]:
    """Perplexity of each stage on each part's held-out songs."""
    headings = ["Stage", *(f"Part {part}" for part in report.parts)]
    return headings, [
        [label(row["stage"]), *(shown(row["perplexity_by_part"][str(part)], 1) for part in report.parts)]
        for row in report.stages
    ]


def print_table(report: Report) -> None:
    """The tables, for a terminal."""
    for headings, rows in (table(report), matrix(report)):
        print("\n" + tabulate(rows, headings, stralign="right", disable_numparse=True))
    if report.words_compared < FEW_WORDS:
        print(
            f"\nOnly {report.words_compared:,} words a row were compared: small differences between the rows mean nothing."
        )


def write_report(folder: Path, report: Report) -> None:
    """Write metrics.json, metrics.csv, samples.jsonl, the plots and report.html into an empty folder."""
    figures = {
        "run_name": report.run_name,
        "made_at": report.made_at,
        "base_model": report.base_model,
        "rows": report.rows,
        "prompts": report.prompts,
        "prompts_compared": report.prompts_compared,
        "different_prompts": report.different_prompts,
        "words_compared": report.words_compared,
        "held_out_songs": report.held_out_songs,
        "settings": report.settings,
        "versions": report.versions,
    }
    (folder / "metrics.json").write_text(to_json(figures), encoding="utf-8")
    with open(folder / "metrics.csv", "w", encoding="utf-8", newline="") as file:
        keys = [column.key for column in COLUMNS]
        parts = [str(part) for part in report.parts]
        writer = csv.writer(file)
        writer.writerow(["stage", *keys, *(f"perplexity_part_{part}" for part in parts)])
        for row in report.rows:
            by_part = row.get("perplexity_by_part", {})
            writer.writerow([row["stage"], *(row.get(key) for key in keys), *(by_part.get(part) for part in parts)])
    with open(folder / "samples.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps(sample, ensure_ascii=False) + "\n" for sample in report.samples)
    plots = draw_plots(folder, report)
    (folder / "report.html").write_text(_html(folder, report, plots), encoding="utf-8")


def draw_plots(folder: Path, report: Report) -> list[tuple[str, str]]:
    """One PNG a figure; returns (file name, description) of each."""
    style = {
        "figure.figsize": (7, 3.6), "figure.dpi": 130, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.alpha": 0.25, "axes.titleweight": "bold", "axes.edgecolor": _INK, "font.size": 9,
    }  # fmt: skip
    with plt.rc_context(style):
        plots = [_plot_training(folder, report), _plot_perplexity(folder, report)]
        for key, title in [
            ("distinct_2", "Distinct-2"),
            ("lexical_diversity", "Lexical diversity"),
            ("coherence", "Local coherence"),
        ]:
            plots.append(_plot_by_stage(folder, report, key, title))
    return plots


def _plot_training(folder: Path, report: Report) -> tuple[str, str]:
    figure, axes = plt.subplots()
    before = 0
    for stage, lines in report.training.items():
        steps = [line for line in lines if "loss" in line]
        colour = _STAGE_COLOURS[stage % len(_STAGE_COLOURS)]
        axes.plot(
            [before + line["step"] for line in steps],
            [line["loss"] for line in steps],
            lw=1,
            color=colour,
            label=f"stage {stage}",
        )
        held_out = [line for line in lines if "val_loss" in line]
        axes.plot(
            [before + line["step"] for line in held_out], [line["val_loss"] for line in held_out],
            "o", ms=4, mec=_INK, color=colour,
        )  # fmt: skip
        before += steps[-1]["step"] if steps else 0
    axes.plot([], [], "o", ms=4, mec=_INK, color="white", label="held-out songs of the stage")
    axes.set(title="Training loss", xlabel="optimiser step, all stages in a row", ylabel="nats a token")
    axes.legend(frameon=False, fontsize=8)
    return _save(
        figure,
        folder,
        "training_loss.png",
        "Training loss by optimiser step for each stage, with the loss on its held-out songs",
    )


def _plot_perplexity(folder: Path, report: Report) -> tuple[str, str]:
    figure, axes = plt.subplots()
    names = [label(row["stage"]) for row in report.stages]
    for part in report.parts:
        values = [row["perplexity_by_part"][str(part)] for row in report.stages]
        axes.plot(names, values, lw=1, marker=".", color=_STAGE_COLOURS[part % len(_STAGE_COLOURS)], label=f"part {part}")
    axes.plot(names, [row["perplexity"] for row in report.stages], lw=2, marker="o", color=_INK, label="all parts")
    axes.set(title="Perplexity on held-out songs", xlabel="stage", ylabel="perplexity (log scale)", yscale="log")
    axes.legend(frameon=False, fontsize=8)
    return _save(figure, folder, "perplexity.png", "Perplexity on each part's held-out songs by stage; lower is better")


def _plot_by_stage(folder: Path, report: Report, key: str, title: str) -> tuple[str, str]:
    figure, axes = plt.subplots()
    values = [float("nan") if row[key] is None else row[key] for row in report.stages]
    axes.plot([label(row["stage"]) for row in report.stages], values, lw=2, marker="o", color=_ACCENT, label="stages")
    human = next((row[key] for row in report.rows if row["stage"] == HUMAN), None)
    if human is not None:
        axes.axhline(human, color=_HUMAN_COLOUR, ls="--", label="human songs")
    axes.set(title=title, xlabel="stage")
    axes.margins(y=0.25)
    axes.legend(frameon=False, fontsize=8)
    return _save(
        figure, folder, f"{key}.png", f"{title} of the generated texts by stage, with that of human songs as a dashed line"
    )


def _save(figure: Any, folder: Path, name: str, description: str) -> tuple[str, str]:
    figure.tight_layout()
    figure.savefig(folder / name)
    plt.close(figure)
    return name, description


def _html(folder: Path, report: Report, plots: list[tuple[str, str]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    numbers = sorted({sample["prompt"] for sample in report.samples})[:_SAMPLES_SHOWN]
    return environment.get_template("report.html.j2").render(
        report=report,
        table=table(report),
        matrix=matrix(report),
        columns=COLUMNS,
        plots=[(base64.b64encode((folder / name).read_bytes()).decode(), alt) for name, alt in plots],
        samples=[[sample for sample in report.samples if sample["prompt"] == number] for number in numbers],
        label=label,
        few_words=FEW_WORDS,
    )
