"""The main job as a user runs it: split, four stages by accelerate launch, evaluation, report."""

import csv
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from finetuning.corpus import read_split_file
from tests.end_to_end.scripts import ONE_CPU, losses, metrics, record, succeed


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, splits, tiny_model, fast) -> Path:
    """A finished run of four stages with its evaluation: stage 1 alone, then the others in a row."""
    output = tmp_path_factory.mktemp("runs")
    first = succeed("train.py", "--stage", 1, "--output_dir", output, "--run_name", "cuatro", *fast, launch=ONE_CPU)
    assert "Stage 1 is finished" in first.out
    rest = succeed("train.py", "--stage", 2, 3, 4, "--output_dir", output, "--run_name", "cuatro", *fast, launch=ONE_CPU)
    flags = f"--data_dir {splits} --output_dir {output} --run_name cuatro"
    assert f"Next: accelerate launch evaluate.py {flags}" in rest.out
    evaluation = succeed(
        "evaluate.py", "--run_name", "cuatro", "--output_dir", output, "--data_dir", splits, "--encoder", "embedded",
        "--num_samples", 6, "--max_new_tokens", 60, launch=ONE_CPU,
    )  # fmt: skip
    assert "human songs" in evaluation.out
    assert str(output / "cuatro" / "evaluation" / "report.html") in evaluation.out
    return output / "cuatro"


def test_each_stage_starts_from_the_one_before_it(run_folder):
    for stage in range(2, 5):
        parent = record(run_folder / f"stage_{stage - 1}")["model"]["weights_sha256"]
        assert record(run_folder / f"stage_{stage}")["parent"]["weights_sha256"] == parent


def test_a_stages_record_says_what_was_done(run_folder, splits):
    for stage in range(1, 5):
        found = record(run_folder / f"stage_{stage}")
        assert found["steps"] == 3 * 3  # 10 songs in batches of 4, three epochs
        assert found["data"]["train"]["songs"] == 10
        manifest = json.loads((splits / "manifest.json").read_text())
        assert found["data"]["train"]["sha256"] == manifest["files"][f"part_{stage}/train.jsonl"]["sha256"]
        assert found["tokens"] == 3 * found["data"]["train"]["tokens"]
        assert found["losses"]["validation_after"] < found["losses"]["validation_before"]
        assert found["recipe"]["learning_rate"] == 1e-3


def test_every_step_is_logged_once_with_its_figures(run_folder):
    for stage in range(1, 5):
        steps = [line for line in metrics(run_folder / f"stage_{stage}") if "loss" in line]
        assert [line["step"] for line in steps] == list(range(1, 10))
        for line in steps:
            assert set(line) == {"step", "loss", "grad_norm", "learning_rate", "tokens", "seconds"}
        assert [line["learning_rate"] for line in steps[:3]] == [0.0, 5e-4, 1e-3]
        assert steps[-1]["learning_rate"] == pytest.approx(1e-3 / 7)
        assert sum("val_loss" in line for line in metrics(run_folder / f"stage_{stage}")) == 4  # before, and each epoch


def test_the_model_of_a_stage_is_an_ordinary_one(run_folder):
    from transformers import pipeline

    writer = pipeline("text-generation", model=str(run_folder / "stage_4" / "model"))
    assert writer("La noche", max_new_tokens=5)[0]["generated_text"].startswith("La noche")


def test_the_figures_of_the_evaluation(run_folder):
    found = json.loads((run_folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    rows = {row["stage"]: row for row in found["rows"]}
    assert list(rows) == ["0", "1", "2", "3", "4", "human"]
    perplexities = [rows[str(stage)]["perplexity"] for stage in range(5)]
    assert perplexities == sorted(perplexities, reverse=True), "each stage on this little data still helps"
    for stage in range(5):
        assert set(rows[str(stage)]["perplexity_by_part"]) == {"1", "2", "3", "4"}
        assert rows[str(stage)]["tokens_scored"] == rows["0"]["tokens_scored"]
    assert "perplexity" not in rows["human"]
    assert 0 < rows["human"]["coherence"] < 1
    with open(run_folder / "evaluation" / "metrics.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["stage"] for row in table] == list(rows)
    assert float(table[4]["perplexity"]) == rows["4"]["perplexity"]


def test_held_out_loss_of_training_and_evaluation_agree_in_kind(run_folder):
    # Training counts the header too, evaluation doesn't, so the figures differ; the last stage's own part must be close.
    import math

    found = json.loads((run_folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    row = next(row for row in found["rows"] if row["stage"] == "4")
    assert math.log(row["perplexity_by_part"]["4"]) == pytest.approx(
        record(run_folder / "stage_4")["losses"]["validation_after"], rel=0.1
    )


def test_samples_have_every_stage_and_the_human_song_for_the_same_prompts(run_folder, splits):
    lines = (run_folder / "evaluation" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert len(samples) == 6 * 6
    held_out = {
        song.title: song for part in range(1, 5) for song in read_split_file(splits / f"part_{part}/validation.jsonl")
    }
    for sample in samples:
        song = held_out[sample["title"]]
        assert sample["prompt_text"].endswith(song.lyrics.split("\n")[0] + "\n")
        assert f"Título: {song.title}" in sample["prompt_text"]
        if sample["stage"] == "human":
            assert sample["text"] == song.lyrics.partition("\n")[2].strip("\n")


def test_evaluating_again_gives_the_same_figures(run_folder, splits, tmp_path):
    before = json.loads((run_folder / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    shutil.copytree(run_folder, tmp_path / "cuatro")
    succeed(
        "evaluate.py", "--run_name", "cuatro", "--output_dir", tmp_path, "--data_dir", splits, "--encoder", "embedded",
        "--num_samples", 6, "--max_new_tokens", 60, "--generation_batch_size", 4, "--stages", 0, 4,
    )  # fmt: skip
    after = json.loads((tmp_path / "cuatro" / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    for row in after["rows"][:2]:
        old = next(each for each in before["rows"] if each["stage"] == row["stage"])
        assert row["perplexity"] == old["perplexity"]
        assert row["perplexity_of_own_texts"] == pytest.approx(old["perplexity_of_own_texts"], rel=1e-6)


def test_prompts_of_ones_own(run_folder, splits, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Era de noche en la sierra\n\n¿Quién llama?\n", encoding="utf-8")
    shutil.copytree(run_folder, tmp_path / "cuatro")
    succeed(
        "evaluate.py", "--run_name", "cuatro", "--output_dir", tmp_path, "--data_dir", splits, "--encoder", "embedded",
        "--num_samples", 4, "--max_new_tokens", 20, "--stages", 4, "--prompts", prompts,
    )  # fmt: skip
    lines = (tmp_path / "cuatro" / "evaluation" / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["prompt_text"] for line in lines} == {"Era de noche en la sierra\n", "¿Quién llama?\n"}


PLOTS = ["training_loss.png", "perplexity.png", "distinct_2.png", "lexical_diversity.png", "coherence.png"]


def test_the_report_in_a_browser(run_folder, tmp_path):
    """Headless Chromium opens the page from disk: all plots and samples, no console error, nothing to fetch."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    page = run_folder / "evaluation" / "report.html"
    opened = subprocess.run(
        [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}", "--disable-background-networking", "--virtual-time-budget=3000",
            "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert opened.returncode == 0, opened.stderr
    assert "CONSOLE" not in opened.stderr
    dom = opened.stdout
    assert dom.count('<img src="data:image/png;base64,') == len(PLOTS)
    samples = [json.loads(line) for line in (page.parent / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    human = next(sample["text"] for sample in samples if sample["stage"] == "human")
    assert human.split("\n")[0] in dom
    assert dom.count('class="sample') >= 6 * 6
    source = page.read_text(encoding="utf-8")
    assert "http://" not in source
    assert "https://" not in source
    for name in PLOTS:
        assert (page.parent / name).read_bytes().startswith(b"\x89PNG")


def test_stages_in_one_row_give_what_stages_one_by_one_give(run_folder, tmp_path, fast):
    succeed("train.py", "--stage", 1, 2, "--output_dir", tmp_path, *fast)
    assert losses(tmp_path / "default" / "stage_2") == losses(run_folder / "stage_2")
    for stage in (1, 2):
        ours = record(tmp_path / "default" / f"stage_{stage}")["model"]["weights_sha256"]
        assert ours == record(run_folder / f"stage_{stage}")["model"]["weights_sha256"]
