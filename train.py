"""Fine-tune a causal language model on song lyrics, one stage after another: the whole training loop, by hand.

Stage k trains on part k of the split and starts from the finished model of stage k-1; stage 1 from the base model.
Three decisions carry everything below:

- A step is a global batch of songs, whatever the machine. Its loss is the sum of the token losses over the tokens of
  the whole global batch, so processes and micro-batches change the speed of a run and nothing else.
- The songs and the random numbers of step s are functions of (seed, stage, s). Resuming means going on at step s.
- What stands on disk is whole. The record stage.json is written last: a stage is finished when it is there.
"""

import os
import shutil
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from finetuning.command_line import check_command_line, flags_of, parse
from finetuning.config import TrainConfig

if __name__ == "__main__":
    check_command_line(TrainConfig)  # so that --help and mistakes don't wait for the imports below

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from finetuning.batches import NO_TARGET, count_targets, deal, pack, seed_of, songs_of_step, steps_per_epoch
from finetuning.checkpoints import TrainingState, newest_valid_checkpoint, save_checkpoint
from finetuning.errors import EXIT_INTERRUPTED, UserError, run_script
from finetuning.files import umask, whole_folder
from finetuning.interruption import Interruption
from finetuning.models import load_causal_lm, require_songs_apart, weights_checksum
from finetuning.perplexity import likelihoods, total
from finetuning.plan import PARENT, Plans, StagePlan, differences, is_done, make_plans, print_plans
from finetuning.progress import Progress, duration
from finetuning.run_folder import RunFolder, StageFolder
from finetuning.tracking import StepLog, finish_trackers, read_metrics, start_trackers


def main() -> int:
    config = parse(TrainConfig)
    interruption = Interruption()
    accelerator = start_accelerator(config)
    run = RunFolder(config.output_dir, config.run_name)

    if accelerator.is_main_process:
        run.settle()
    with accelerator.main_process_first():  # what has to be downloaded or built is, once
        plans = make_plans(config, run, accelerator.mixed_precision)
    accelerator.print(
        f"Run '{config.run_name}' on {accelerator.num_processes} process(es), {accelerator.device.type}, "
        f"{'bf16' if accelerator.mixed_precision == 'bf16' else 'fp32'}\n"
    )
    print_plans(config, run, plans, accelerator.print)
    if config.dry_run:
        return 0

    lock = run.lock() if accelerator.is_main_process else nullcontext()
    with lock:
        finished = train_stages(config, plans, run, accelerator, interruption)
    accelerator.end_training()
    if not finished:
        return EXIT_INTERRUPTED
    encoder = " --encoder embedded" if config.model_name_or_path == "embedded" else ""
    flags = flags_of(config, "run_name", "output_dir", "data_dir") + encoder
    accelerator.print(f"\nNext: accelerate launch evaluate.py{flags}")
    return 0


def train_stages(
    config: TrainConfig, plans: Plans, run: RunFolder, accelerator: Accelerator, interruption: Interruption
) -> bool:
    """Train the stages one after another. Returns whether all are finished."""
    for plan in plans.stages:
        if interruption.agreed(accelerator):
            accelerator.print(f"\nStopped before stage {plan.stage}. The same command goes on from there.")
            return False
        if config.overwrite is None and is_done(plan, run):
            accelerator.print(f"\nStage {plan.stage} is finished with these settings, data and parent: kept.")
            continue
        if not train_stage(config, plan, plans, run, accelerator, interruption):
            return False
    return True


def start_accelerator(config: TrainConfig) -> Accelerator:
    """Accelerate's view of the machine: how many processes, which device, which precision."""
    mixed_precision = config.mixed_precision
    if mixed_precision == "auto":
        mixed_precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    accelerator = Accelerator(mixed_precision=mixed_precision)
    accelerator.gradient_accumulation_steps = 1  # a launch setting's would divide the loss, which is a mean already
    # Some launch settings start processes that don't know of each other: each would train alone, and all would save.
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"{launched} processes were launched, but Accelerate joined {accelerator.num_processes}; "
            "to run several on the CPU set ACCELERATE_USE_CPU=true"
        )
    return accelerator


def learning_rate_at(step: int, config: TrainConfig, total_steps: int) -> float:
    """The learning rate of optimiser step `step` (from 0): up from 0 over the warm-up, then straight down to 0."""
    if step < config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    return config.learning_rate * (total_steps - step) / max(1, total_steps - config.warmup_steps)


def make_optimizer(model: torch.nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay for matrices only, not for biases and layer norms, which are vectors."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [each for each in parameters if each.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def train_stage(
    config: TrainConfig,
    plan: StagePlan,
    plans: Plans,
    run: RunFolder,
    accelerator: Accelerator,
    interruption: Interruption,
) -> bool:
    """Train one stage to its end, or until a signal comes. Returns whether it is finished."""
    started_at = time.monotonic()
    stage, rank, device = plan.stage, accelerator.process_index, accelerator.device
    folder = run.attempt(stage)
    accelerator.print(f"\nStage {stage}: from {plan.parent.name}, into {folder.path}")

    # ---------------------------------------------------------------------------------------- model, optimiser, resumption
    model = load_causal_lm(plan.parent.found, plan.parent.flag)
    require_songs_apart(model, plan.parent.flag)
    recipe = {**plan.settings, PARENT: weights_checksum(model.state_dict())}
    parent_record = run.stage(stage - 1).read_record() if stage > 1 else None
    if parent_record is not None and parent_record["model"]["weights_sha256"] != recipe[PARENT]:
        raise UserError(
            f"{plan.parent.found}: not the weights that its record names; train stage {stage - 1} again with --overwrite"
        )
    optimizer = make_optimizer(model, config)
    model, optimizer = accelerator.prepare(model, optimizer)
    state = resume(folder, recipe, bool(config.overwrite), accelerator)
    state.starts += 1
    seconds_before = state.seconds

    # ------------------------------------------------------------------------------------------------------------ trackers
    progress = Progress(
        plan.total_steps, "steps", f"Stage {stage}", done=state.completed_steps, enabled=accelerator.is_main_process
    )
    log = StepLog(accelerator, folder.metrics, progress, state.completed_steps, config.logging_steps)
    start_trackers(
        accelerator,
        [name for name in config.report_to if name != "none"],
        folder,
        run_title=f"{config.run_name}-stage-{stage}",
        settings=recipe,
        completed_steps=state.completed_steps,
        warn=accelerator.print,
    )

    def validate() -> None:
        scores = likelihoods(model, plan.held_out, accelerator, window=plan.block_size, stride=plan.block_size // 2)
        held_out = total(scores)
        log.validation(state.completed_steps, held_out.loss, held_out.tokens)

    if state.completed_steps == 0:
        validate()

    # ------------------------------------------------------------------------------------------------------------ the loop
    model.train()
    micro_batch_size = config.micro_batch_size or config.global_batch_size
    epoch_steps = steps_per_epoch(len(plan.songs), config.global_batch_size)
    while state.completed_steps < plan.total_steps:
        step, step_started_at = state.completed_steps, time.monotonic()
        torch.manual_seed(seed_of("step", config.seed, stage, step, rank))  # for dropout
        learning_rate = learning_rate_at(step, config, plan.total_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate

        # The global batch of this step, the same on every process, and this process's share of it.
        songs = songs_of_step(step, len(plan.songs), config.global_batch_size, config.seed, stage)
        blocks = [block for song in songs for block in plan.songs[song]]
        batch_tokens = count_targets(blocks)
        micro_batches = deal(blocks, accelerator.num_processes, micro_batch_size)[rank]

        step_loss = torch.zeros((), device=device)
        for number, micro_batch in enumerate(micro_batches, start=1):
            row = pack(micro_batch).to(device)
            # Gradients are exchanged between processes once a step, after the last micro-batch.
            with nullcontext() if number == len(micro_batches) else accelerator.no_sync(model):
                # No attention_mask and no cache: only then does position_ids keep the songs of a row apart.
                logits = model(input_ids=row.input_ids, position_ids=row.position_ids, use_cache=False).logits
                loss_sum = F.cross_entropy(logits[0].float(), row.targets[0], ignore_index=NO_TARGET, reduction="sum")
                loss = loss_sum / batch_tokens
                # Gradients are averaged over processes, but this loss is a share of a sum: undo the division.
                accelerator.backward(loss * accelerator.num_processes)
            step_loss += loss.detach()

        grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        step_loss = accelerator.reduce(step_loss, "sum")

        state.completed_steps += 1
        state.tokens += batch_tokens
        state.seconds = seconds_before + time.monotonic() - started_at
        seconds = time.monotonic() - step_started_at
        log.step(
            state.completed_steps, step_loss, grad_norm, learning_rate=learning_rate, tokens=batch_tokens, seconds=seconds
        )

        # ----------------------------------------------------------------------------------- after a step: judge, save, stop
        if state.completed_steps % epoch_steps == 0:
            validate()
        last_step = state.completed_steps == plan.total_steps
        stopped = not last_step and interruption.agreed(accelerator)
        if stopped or state.completed_steps % config.checkpointing_steps == 0:
            log.write()
            save_checkpoint(accelerator, folder.checkpoints, state, config.save_total_limit)
        if stopped:
            progress.close()
            finish_trackers(accelerator)
            accelerator.print(
                f"Stage {stage} stopped by {interruption.signal_name or 'a signal to another process'} after step "
                f"{state.completed_steps:,}, which is saved. The same command goes on from there."
            )
            return False

    # ---------------------------------------------------------------------------------------------------------- the result
    log.write()
    log.log_line()
    progress.close()
    finish_trackers(accelerator)
    finish(plan, plans, run, folder, state, model, accelerator)
    accelerator.free_memory(model, optimizer)
    return True


def resume(folder: StageFolder, recipe: dict[str, Any], overwrite: bool, accelerator: Accelerator) -> TrainingState:
    """Load the newest valid checkpoint of this recipe into the prepared objects; without one, a state of no steps."""
    try:
        found = newest_valid_checkpoint(accelerator, folder.checkpoints, accelerator.print)
    except UserError:
        if not overwrite:
            raise
        found = None
    if found is not None:
        checkpoint, state = found
        if not differences(state.recipe, recipe):
            accelerator.load_state(str(checkpoint))
            accelerator.print(f"Going on after step {state.completed_steps:,}, from {checkpoint}")
            return state
        accelerator.print(f"The unfinished work in {folder.path} has another parent or other settings: starting afresh.")
    if accelerator.is_main_process:
        shutil.rmtree(folder.path, ignore_errors=True)
        folder.path.mkdir(parents=True)
    accelerator.wait_for_everyone()
    return TrainingState(recipe=recipe)


def finish(
    plan: StagePlan,
    plans: Plans,
    run: RunFolder,
    folder: StageFolder,
    state: TrainingState,
    model: torch.nn.Module,
    accelerator: Accelerator,
) -> None:
    """Save the model, then the record that declares the stage finished, and put both in their place."""
    weights = accelerator.get_state_dict(model)  # gathers what is spread over processes
    if accelerator.is_main_process:
        trained = accelerator.unwrap_model(model)
        try:
            with whole_folder(folder.model) as partial:
                trained.save_pretrained(partial, state_dict=weights)
                plans.tokenizer.save_pretrained(partial)
                for path in partial.iterdir():  # safetensors makes files that only their owner can read
                    path.chmod(0o666 & ~umask())
        except Exception as error:  # safetensors and torch have their own for a full disk
            raise UserError(
                f"{folder.model}: can't be written ({error}); free some space and run the command again"
            ) from None
        metrics = read_metrics(folder.metrics)
        val_losses = [line["val_loss"] for line in metrics if "val_loss" in line]
        losses = [line["loss"] for line in metrics if "loss" in line]
        folder.write_record(
            {
                "stage": plan.stage,
                "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
                "parent": {"name": plan.parent.name, "weights_sha256": state.recipe[PARENT]},
                "model": {"weights_sha256": weights_checksum(weights), "parameters": plans.parameters},
                "data": plan.data,
                "recipe": state.recipe,
                "steps": state.completed_steps,
                "tokens": state.tokens,
                "losses": {
                    "first_step": losses[0],
                    "last_step": losses[-1],
                    "validation_before": val_losses[0],
                    "validation_after": val_losses[-1],
                },
                "seconds": round(state.seconds, 1),
                "starts": state.starts,
                "hardware": {
                    "processes": accelerator.num_processes,
                    "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
                },
                "versions": {name: version(name) for name in ("torch", "transformers", "accelerate")},
            }
        )
        run.publish(plan.stage, folder)
        print(
            f"Stage {plan.stage} is finished: {state.completed_steps:,} steps in {duration(state.seconds)}, loss on held-out"
            f" songs {val_losses[0]:.3f} -> {val_losses[-1]:.3f}. Its model: {run.stage(plan.stage).model}"
        )
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    run_script(main)
