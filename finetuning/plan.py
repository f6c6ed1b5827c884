"""What each stage will train on, from what, and whether it has to: decided and checked before anything is written."""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate
from transformers import PreTrainedTokenizerBase

from finetuning.batches import count_targets, cut_into_blocks, steps_per_epoch, tokenize_song
from finetuning.checkpoints import unfinished_work
from finetuning.config import TrainConfig
from finetuning.corpus import Song, read_split_file
from finetuning.errors import UserError, nearest_existing, require_writable
from finetuning.files import sha256_of
from finetuning.models import (
    context_length,
    count_parameters,
    find_causal_lm,
    load_causal_lm,
    load_tokenizer,
    weights_checksum,
)
from finetuning.perplexity import Text
from finetuning.run_folder import RunFolder

PARENT = "parent_sha256"  # the weights a stage started from: the one setting that is known only when it starts
_BYTES_OF_A_FLOAT = 4
_ADAM_STATES = 2  # the two moments of AdamW, each as large as the weights


@dataclass
class Parent:
    """The model that a stage starts from."""

    name: str  # in the user's words
    found: str  # what from_pretrained takes
    flag: str  # how the user names it


@dataclass
class StagePlan:
    """What one stage will train on."""

    stage: int
    parent: Parent
    songs: list[list[list[int]]]  # of each training song its blocks, of each block its tokens
    held_out: list[Text]
    data: dict[str, Any]  # the part's files, with checksums and counts
    block_size: int
    total_steps: int
    settings: dict[str, Any]  # all that decides the result, but the parent's weights


@dataclass
class Plans:
    """What all stages asked for will train on."""

    stages: list[StagePlan]
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    bytes_needed: int


def make_plans(config: TrainConfig, run: RunFolder, mixed_precision: str) -> Plans:
    """Read the data, find the first parent, and check all that can be checked. Writes nothing.

    Raises:
        UserError: something is missing or doesn't fit; all that is found is reported together.
    """
    require_writable(run.path, "--output_dir")
    mistakes: list[str] = []

    def collected(check: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except UserError as error:
            mistakes.extend(error.lines)
            return None

    songs = {
        (stage, side): collected(_read_part, config, stage, side)
        for stage in config.stage
        for side in ("train", "validation")
    }
    for stage in config.stage:
        if config.overwrite is False and run.stage(stage).record.exists():
            mistakes.append(
                f"--no-overwrite: stage {stage} of run '{config.run_name}' is finished; leave the flag out, or choose "
                "another --run_name"
            )
    parent = collected(_first_parent, config, run)
    UserError.of_all(mistakes)

    tokenizer = load_tokenizer(parent.found, parent.flag)
    context = context_length(parent.found, parent.flag)
    if config.block_size and config.block_size > context:
        raise UserError(f"--block_size {config.block_size}: the model sees {context} tokens at most; choose a smaller one")
    block_size = config.block_size or context
    split = split_checksum(config.data_dir)
    stages = []
    for stage in config.stage:
        if stages:
            parent = _stage_parent(run, stage - 1)
        tokens = [tokenize_song(song, tokenizer, config.song_header)[0] for song in songs[stage, "train"]]
        held_out = [Text(tokenize_song(song, tokenizer, config.song_header)[0]) for song in songs[stage, "validation"]]
        blocks = [cut_into_blocks(song, block_size) for song in tokens]
        data: dict[str, Any] = {
            side: {
                "path": str(_file(config, stage, side)),
                "sha256": sha256_of(_file(config, stage, side)),
                "songs": len(songs[stage, side]),
            }
            for side in ("train", "validation")
        }
        data["split_sha256"] = split
        data["train"]["tokens"] = sum(map(count_targets, blocks))
        data["train"]["blocks"] = sum(map(len, blocks))
        data["validation"]["tokens"] = sum(len(text.tokens) - 1 for text in held_out)
        settings = {
            "base_model": config.model_name_or_path if stage == 1 else None,
            "train_sha256": data["train"]["sha256"],
            "song_header": config.song_header,
            "block_size": block_size,
            "num_epochs": config.num_epochs,
            "global_batch_size": config.global_batch_size,
            "learning_rate": config.learning_rate,
            "warmup_steps": config.warmup_steps,
            "weight_decay": config.weight_decay,
            "max_grad_norm": config.max_grad_norm,
            "mixed_precision": mixed_precision,
            "seed": config.seed,
        }
        total_steps = config.num_epochs * steps_per_epoch(len(blocks), config.global_batch_size)
        stages.append(StagePlan(stage, parent, blocks, held_out, data, block_size, total_steps, settings))
    _check_unfinished_work(config, run, stages)
    parameters = count_parameters(stages[0].parent.found, stages[0].parent.flag)
    return Plans(stages, tokenizer, parameters, _bytes_needed(config, run, stages, parameters))


def split_checksum(data_dir: Path) -> str:
    """What tells one split from another: a checksum over those of all its files.

    Raises:
        UserError: the folder has no manifest.
    """
    try:
        files = json.loads((data_dir / "manifest.json").read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"--data_dir {data_dir}: its manifest.json is missing or broken; make the split with split_data.py"
        ) from None
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of the settings that differ between two recipes."""
    return [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]


def is_done(plan: StagePlan, run: RunFolder) -> bool:
    """Whether the stage is finished with these very settings, and from the parent as it is now."""
    record = run.stage(plan.stage).read_record()
    if record is None or not any(run.stage(plan.stage).model.glob("*.safetensors")):
        return False
    if differences(record["recipe"], {**plan.settings, PARENT: record["recipe"][PARENT]}):
        return False
    if plan.stage > 1:
        parent = run.stage(plan.stage - 1).read_record()
        return parent is not None and parent["model"]["weights_sha256"] == record["recipe"][PARENT]
    base = load_causal_lm(plan.parent.found, plan.parent.flag)  # other weights may stand under its name by now
    return weights_checksum(base.state_dict()) == record["recipe"][PARENT]


def print_plans(config: TrainConfig, run: RunFolder, plans: Plans, say: Callable[[str], None]) -> None:
    """The table of what will happen."""
    rows = []
    parent_changes = False
    for plan in plans.stages:
        unfinished = unfinished_work(run.attempt(plan.stage).checkpoints)
        if not parent_changes and config.overwrite is None and is_done(plan, run):
            what = "keep, it is finished"
        else:
            parent_changes = True
            what = "train again" if run.stage(plan.stage).record.exists() else "train"
            if unfinished is not None:
                what = f"go on after step {unfinished.completed_steps:,}"
        rows.append(
            [
                plan.stage,
                plan.parent.name,
                f"{plan.data['train']['songs']:,}",
                f"{plan.data['train']['tokens']:,}",
                f"{plan.data['validation']['songs']:,}",
                f"{plan.total_steps:,}",
                what,
            ]
        )
    headers = ["Stage", "Starts from", "Songs", "Tokens", "Held out", "Steps", "To do"]
    say(tabulate(rows, headers, stralign="right", disable_numparse=True))
    free = shutil.disk_usage(nearest_existing(run.path)).free
    say(
        f"{plans.parameters / 1e6:.1f} million parameters; block size {plans.stages[0].block_size}; disk needed up to "
        f"{plans.bytes_needed / 1e9:.2f} GB, free {free / 1e9:.1f} GB"
    )
    for plan in plans.stages:
        if config.warmup_steps >= plan.total_steps:
            say(
                f"Warning: stage {plan.stage} ends after {plan.total_steps} steps, within its {config.warmup_steps} warm-up "
                "steps: the learning rate never reaches its height. See --warmup_steps."
            )


def _file(config: TrainConfig, stage: int, side: str) -> Path:
    """A part's songs. Raises UserError where the split has no such part."""
    folder = config.data_dir / f"part_{stage}"
    if not config.data_dir.is_dir():
        raise UserError(
            f"--data_dir {config.data_dir}: there is no such folder; make it with: python split_data.py --input YOUR_SONGS"
        )
    if not folder.is_dir():
        parts = sorted(path.name.removeprefix("part_") for path in config.data_dir.glob("part_*"))
        raise UserError(f"--stage {stage}: {config.data_dir} has no part {stage} (it has {', '.join(parts) or 'none'})")
    return folder / f"{side}.jsonl"


def _read_part(config: TrainConfig, stage: int, side: str) -> list[Song]:
    return read_split_file(_file(config, stage, side))


def _first_parent(config: TrainConfig, run: RunFolder) -> Parent:
    stage = config.stage[0]
    if stage == 1:
        flag = "--model_name_or_path"
        return Parent(config.model_name_or_path, find_causal_lm(config.model_name_or_path, flag), flag)
    records, split = run.chain(stage - 1), split_checksum(config.data_dir)
    for earlier, record in records.items():
        if record["data"]["split_sha256"] != split:
            raise UserError(
                f"--data_dir {config.data_dir}: stage {earlier} of run '{run.run_name}' was trained on another split, which "
                "may have held out other songs; name that one, or choose another --run_name"
            )
    return _stage_parent(run, stage - 1)


def _stage_parent(run: RunFolder, stage: int) -> Parent:
    return Parent(f"stage {stage}", str(run.stage(stage).model), f"stage {stage}:")


def _check_unfinished_work(config: TrainConfig, run: RunFolder, stages: list[StagePlan]) -> None:
    """Refuse to go on with other settings than an unfinished stage was started with, unless it may be dropped."""
    if config.overwrite:
        return
    mistakes = []
    for plan in stages:
        state = unfinished_work(run.attempt(plan.stage).checkpoints)
        if state is None or is_done(plan, run):
            continue
        changed = [name for name in differences(state.recipe, plan.settings) if name != PARENT]
        if changed:
            old = ", ".join(f"{name} {state.recipe.get(name)} -> {plan.settings.get(name)}" for name in changed)
            mistakes.append(
                f"--stage {plan.stage}: it stands at step {state.completed_steps} with other settings ({old}); go on with "
                "the old ones, or give --overwrite to start it afresh"
            )
    UserError.of_all(mistakes)


def _bytes_needed(config: TrainConfig, run: RunFolder, stages: list[StagePlan], parameters: int) -> int:
    """What the stages will come to hold on disk at most, less what they hold already.

    Raises:
        UserError: more than is free.
    """
    weights = parameters * _BYTES_OF_A_FLOAT
    needed = 0
    for plan in stages:
        checkpoints = min(config.save_total_limit + 1, plan.total_steps // config.checkpointing_steps)
        will_hold = weights + checkpoints * weights * (1 + _ADAM_STATES)
        holds = sum(path.stat().st_size for path in run.attempt(plan.stage).path.rglob("*") if path.is_file())
        needed += max(0, will_hold - holds)
    free = shutil.disk_usage(nearest_existing(run.path)).free
    if needed > free:
        raise UserError(
            f"--output_dir {config.output_dir}: the stages need {needed / 1e9:.2f} GB of disk, but only {free / 1e9:.2f} GB "
            "are free; free some, name another folder, or keep fewer checkpoints (--save_total_limit)"
        )
    return needed
