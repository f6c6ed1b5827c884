"""Two processes on the CPU do what one does: the same losses, weights, perplexities and texts."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.end_to_end.scripts import ROOT, environment, losses, run, succeed

CONFIG = ROOT / "accelerate_configs" / "multi_cpu.yaml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, fast) -> dict[str, Path]:
    """The same two stages by one process, by one with micro-batches of one song, and by two."""
    output = tmp_path_factory.mktemp("runs")
    command = ["train.py", "--stage", 1, 2, "--output_dir", output, *fast]
    succeed(*command, "--run_name", "one")
    succeed(*command, "--run_name", "accumulating", "--micro_batch_size", 1)
    two = succeed(*command, "--run_name", "two", launch=CONFIG, env=environment(ACCELERATE_USE_CPU="true"))
    assert "on 2 process(es)" in two.out
    assert two.out.count("Stage 1 is finished") == 1, "one process speaks for all"
    return {name: output / name for name in ("one", "accumulating", "two")}


@pytest.mark.parametrize("other", ["accumulating", "two"])
@pytest.mark.parametrize("stage", ["stage_1", "stage_2"])
def test_every_loss_and_the_weights_are_those_of_one_process(runs, other, stage):
    expected, found = losses(runs["one"] / stage), losses(runs[other] / stage)
    assert expected.keys() == found.keys()
    assert max(abs(expected[step] - found[step]) for step in expected) < 1e-5
    weights = load_file(runs["one"] / stage / "model" / "model.safetensors")
    others = load_file(runs[other] / stage / "model" / "model.safetensors")
    assert max((weights[name] - others[name]).abs().max().item() for name in weights) < 1e-5


def test_two_processes_evaluate_as_one_does(runs, splits):
    def evaluated(**options) -> tuple[list, list]:
        succeed(
            "evaluate.py", "--run_name", "one", "--output_dir", runs["one"].parent, "--data_dir", splits,
            "--encoder", "embedded", "--num_samples", 5, "--max_new_tokens", 30, "--stages", 1, 2, **options,
        )  # fmt: skip
        folder = runs["one"] / "evaluation"
        rows = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["rows"]
        return rows, (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()

    rows, samples = evaluated()
    rows_of_two, samples_of_two = evaluated(launch=CONFIG, env=environment(ACCELERATE_USE_CPU="true"))
    assert samples_of_two == samples
    for one, two in zip(rows, rows_of_two, strict=True):
        assert two.get("tokens_scored") == one.get("tokens_scored")
        if one["stage"] != "human":
            assert two["perplexity"] == pytest.approx(one["perplexity"], rel=1e-6)
        assert two["distinct_2"] == one["distinct_2"]


def test_processes_that_do_not_know_of_each_other_are_stopped(fast, tmp_path):
    # Without ACCELERATE_USE_CPU Accelerate starts two processes here, each of which takes itself for the only one.
    result = run("train.py", "--stage", 1, "--output_dir", tmp_path / "runs", *fast, launch=CONFIG)
    assert result.status != 0
    assert "2 processes were launched, but Accelerate joined 1" in result.err
    assert not (tmp_path / "runs").exists()
