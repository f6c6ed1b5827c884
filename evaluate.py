"""Judge the models of a run's stages, and the base model as stage 0, on equal terms; write one report.

Every stage scores the same held-out songs of every part, and continues the same prompts with the same random numbers.
Beside them stand the human continuations of those prompts. Diversity falls as texts grow, so of each prompt all
continuations, human and machine, are cut to the same number of words.
"""

import json
import random
import signal
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from finetuning.command_line import check_command_line, parse, to_plain
from finetuning.config import EvaluateConfig

if __name__ == "__main__":
    check_command_line(EvaluateConfig)  # so that --help and mistakes don't wait for the imports below

import nltk
import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from finetuning.batches import encode, fill_header, tokenize_song
from finetuning.corpus import Song, read_split_file
from finetuning.errors import UserError, require_writable, run_script
from finetuning.files import sha256_of, whole_folder
from finetuning.generation import Sampling, generate
from finetuning.models import (
    context_length,
    find_causal_lm,
    find_encoder,
    load_causal_lm,
    load_encoder,
    load_tokenizer,
    weights_checksum,
)
from finetuning.perplexity import Likelihood, Text, likelihoods, total
from finetuning.plan import split_checksum
from finetuning.progress import Progress
from finetuning.report import HUMAN, Report, print_table, write_report
from finetuning.run_folder import RunFolder
from finetuning.text_metrics import (
    coherence,
    count_words,
    cut_to_words,
    distinct_n,
    lexical_diversity,
    lines_of,
    mean,
    words_of,
)
from finetuning.tracking import read_metrics


@dataclass
class Prompt:
    """What all stages continue, and how a human went on."""

    text: str
    tokens: list[int]
    human: str  # the lyrics after the prompt; for a prompt of the user's own, those of some held-out song
    title: str


@dataclass
class StageResult:
    """What one stage's model scored and wrote."""

    stage: int
    held_out: dict[int, Likelihood]  # by part
    own_text: Likelihood
    texts: list[str]  # one a prompt, without the prompt


def main() -> None:
    # ----------------------------------------------------------------------------------- what is asked for, and is it there
    config = parse(EvaluateConfig)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    accelerator = Accelerator()
    run = RunFolder(config.output_dir, config.run_name)
    records = read_records(config, run)
    stages = config.stages if config.stages is not None else [0, *records]
    check_split(config, records)
    require_writable(run.path, "--output_dir")
    recipe = records[max(records)]["recipe"]
    with accelerator.main_process_first():  # what has to be downloaded or built is, once
        models = {stage: find_model(stage, run, records) for stage in stages}
        encoder_folder = find_encoder(config.encoder, "--encoder")
    sentences = sentence_splitter(config)
    tokenizer = load_tokenizer(*models[stages[-1]])
    context = context_length(*models[stages[-1]])
    window = min(config.window or recipe["block_size"], context)
    stride = config.stride or window // 2
    if stride >= window:
        raise UserError(f"--stride {stride}: must be below the window of {window} tokens, or some have no context")
    held_out = read_held_out(config)
    prompts = make_prompts(config, held_out, tokenizer, recipe["song_header"], context)
    sampling = make_sampling(config, prompts, context, accelerator)
    scored = [
        (part, scored_text(song, tokenizer, recipe["song_header"])) for part, songs in held_out.items() for song in songs
    ]

    # ---------------------------------------------------------------------------------------------- what the models say
    results = []
    for stage in stages:
        model = load_causal_lm(*models[stage]).to(accelerator.device)
        check_weights(stage, model, records)
        title = f"Stage {stage}: scoring held-out songs"
        scores = likelihoods(
            model,
            [text for _, text in scored],
            accelerator,
            window=window,
            stride=stride,
            on_progress=reporter(title, "rows", accelerator),
        )
        by_part = {
            part: total([score for (of, _), score in zip(scored, scores, strict=True) if of == part]) for part in held_out
        }
        written = write_texts(model, prompts, sampling, config, tokenizer, stage, accelerator)
        own = [Text(prompt.tokens + tokens, len(prompt.tokens)) for prompt, tokens in zip(prompts, written, strict=True)]
        own_text = total(likelihoods(model, own, accelerator, window=context, stride=context // 2))
        texts = [tokenizer.decode(tokens).strip("\n") for tokens in written]
        results.append(StageResult(stage, by_part, own_text, texts))
        del model
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # ------------------------------------------------------------------------------------------------ what it amounts to
    accelerator.end_training()
    if not accelerator.is_main_process:
        return
    encoder = load_encoder(encoder_folder, "--encoder", accelerator.device)
    candidates = {str(result.stage): result.texts for result in results}
    candidates[HUMAN] = [prompt.human for prompt in prompts]
    different = min(len({prompt.text for prompt in prompts}), len({prompt.human for prompt in prompts}))
    lengths = [min(count_words(texts[i]) for texts in candidates.values()) for i in range(len(prompts))]
    rows = []
    for name, texts in candidates.items():
        cut = [cut_to_words(text, length) for text, length in zip(texts, lengths, strict=True)]
        rows.append({"stage": name, **judge_texts(cut, different, encoder, sentences)})
    for row, result in zip(rows, results, strict=False):  # the last row is the human songs'
        row.update(judge_likelihoods(result))
    report = Report(
        run_name=config.run_name,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        settings=to_plain(config)
        | {
            "window": window,
            "stride": stride,
            "max_new_tokens": sampling.max_new_tokens,
            "song_header": recipe["song_header"],
        },
        base_model=records[1]["recipe"]["base_model"],
        rows=rows,
        prompts=len(prompts),
        prompts_compared=sum(length > 0 for length in lengths),
        different_prompts=different,
        words_compared=sum(lengths),
        parts=sorted(held_out),
        held_out_songs=len(scored),
        records=records,
        training={stage: read_metrics(run.stage(stage).metrics) for stage in records},
        samples=samples_of(prompts, candidates, lengths),
        versions={name: version(name) for name in ("torch", "transformers", "sentence-transformers", "nltk")},
    )
    with whole_folder(run.evaluation) as folder:
        write_report(folder, report)
    print_table(report)
    print(f"\nThe report: {run.evaluation / 'report.html'}")


def read_records(config: EvaluateConfig, run: RunFolder) -> dict[int, dict[str, Any]]:
    """The records of the stages up to the last one asked for, by default the last finished one.

    Raises:
        UserError: a stage isn't finished, or doesn't start from the one before it.
    """
    wanted = max(config.stages) if config.stages else max(run.finished_stages(), default=1)
    return run.chain(max(1, wanted))  # stage 0's name stands in stage 1's record


def check_split(config: EvaluateConfig, records: dict[int, dict[str, Any]]) -> None:
    """Refuse another split than the stages were trained on: its held-out songs may be songs that they have seen."""
    checksum = split_checksum(config.data_dir)
    mistakes = [
        f"--data_dir {config.data_dir}: stage {stage} was trained on another split than this, so what is held out here may "
        "have been trained on; name the right split, or train again"
        for stage, record in records.items()
        if record["data"]["split_sha256"] != checksum
    ]
    files = json.loads((config.data_dir / "manifest.json").read_text(encoding="utf-8"))["files"]
    mistakes += [
        f"--data_dir {config.data_dir}: {name} isn't what manifest.json says; make the split again with split_data.py"
        for name, expected in files.items()
        if not (config.data_dir / name).is_file() or sha256_of(config.data_dir / name) != expected["sha256"]
    ]
    UserError.of_all(mistakes)


def check_weights(stage: int, model: PreTrainedModel, records: dict[int, dict[str, Any]]) -> None:
    """Refuse a model that isn't the one that the records tell of."""
    expected = records[stage]["model"]["weights_sha256"] if stage else records[1]["parent"]["weights_sha256"]
    if weights_checksum(model.state_dict()) != expected:
        raise UserError(f"stage {stage}: the model's weights aren't those of the run's records; train the stage again")


def find_model(stage: int, run: RunFolder, records: dict[int, dict[str, Any]]) -> tuple[str, str]:
    """Where a stage's model is, and what to call it in an error."""
    if stage == 0:
        name = records[1]["recipe"]["base_model"]
        return find_causal_lm(name, "stage 0:"), "stage 0:"
    return find_causal_lm(str(run.stage(stage).model), f"stage {stage}:"), f"stage {stage}:"


def read_held_out(config: EvaluateConfig) -> dict[int, list[Song]]:
    """The held-out songs by part."""
    parts = sorted(
        int(path.name.removeprefix("part_"))
        for path in config.data_dir.glob("part_*")
        if path.name.removeprefix("part_").isdigit()
    )
    return {part: read_split_file(config.data_dir / f"part_{part}" / "validation.jsonl") for part in parts}


def scored_text(song: Song, tokenizer: PreTrainedTokenizerBase, header: str) -> Text:
    """A song as it is scored: its header is context, its lyrics and end count. Knowing the header's form gains nothing."""
    tokens, header_length = tokenize_song(song, tokenizer, header)
    return Text(tokens, max(1, header_length))


def make_prompts(
    config: EvaluateConfig, held_out: dict[int, list[Song]], tokenizer: PreTrainedTokenizerBase, header: str, context: int
) -> list[Prompt]:
    """`num_samples` prompts: headers and first lines of held-out songs, or the lines of the user's file, in turn.

    A prompt takes half of the context at most; of a longer one its end is used.
    """
    songs = [song for part in held_out.values() for song in part]
    long_enough = [song for song in songs if len(lines_of(song.lyrics)) >= 2] or songs
    random.Random(config.seed).shuffle(long_enough)
    given: list[str] = []
    if config.prompts:
        try:
            given = [line.strip() for line in config.prompts.read_text(encoding="utf-8").splitlines() if line.strip()]
        except UnicodeDecodeError:
            raise UserError(f"--prompts {config.prompts}: not UTF-8; convert it with iconv") from None
        if not given:
            raise UserError(f"--prompts {config.prompts}: the file is empty; write one prompt a line")
        if len(given) > config.num_samples:
            print(f"Of the {len(given)} prompts the first {config.num_samples} are used; see --num_samples.")
    prompts = []
    for number in range(config.num_samples):
        song = long_enough[number % len(long_enough)]
        first_line, _, rest = song.lyrics.partition("\n")
        if given:
            text = given[number % len(given)] + "\n"
            prompts.append(Prompt(text, encode(text, tokenizer)[-context // 2 :], song.lyrics, ""))
        else:
            # Tokenized in two, as a song is.
            before, line = fill_header(song, header), first_line + "\n"
            tokens = encode(before, tokenizer) + encode(line, tokenizer)
            prompts.append(Prompt(before + line, tokens[-context // 2 :], rest.strip("\n"), song.title))
    return prompts


def sentence_splitter(config: EvaluateConfig) -> Any:
    """NLTK's Spanish sentence tokenizer, or None where lines are compared."""
    if config.coherence_unit == "line":
        return None
    try:
        return nltk.tokenize.PunktTokenizer("spanish")
    except LookupError:
        raise UserError(
            "--coherence_unit sentence: NLTK's Punkt data is missing; fetch it with: python -m nltk.downloader punkt_tab, "
            "or compare lines"
        ) from None


def reporter(title: str, unit: str, accelerator: Accelerator) -> Any:
    """A function to be told (done, of how many), which shows it."""
    progress: list[Progress] = []

    def show(done: int, of: int) -> None:
        if not progress:
            progress.append(Progress(of, unit, title, enabled=accelerator.is_main_process))
            progress[0].say(title)
        progress[0].update(done)
        if done == of:
            progress[0].close()

    return show


def make_sampling(config: EvaluateConfig, prompts: list[Prompt], context: int, accelerator: Accelerator) -> Sampling:
    """How texts are drawn: as asked for, but no text grows beyond what the model sees at once."""
    room = context - max(len(prompt.tokens) for prompt in prompts)
    if room < config.max_new_tokens:
        accelerator.print(
            f"The model sees {context} tokens at once, so texts end after {room} tokens, not {config.max_new_tokens}."
        )
    return Sampling(
        max_new_tokens=min(config.max_new_tokens, room),
        temperature=config.temperature,
        top_p=config.top_p,
        repetition_penalty=config.repetition_penalty,
        seed=config.seed,
    )


def write_texts(
    model: PreTrainedModel,
    prompts: list[Prompt],
    sampling: Sampling,
    config: EvaluateConfig,
    tokenizer: PreTrainedTokenizerBase,
    stage: int,
    accelerator: Accelerator,
) -> list[list[int]]:
    """The new tokens of each prompt's continuation, the work shared by all processes, the result the same on all."""
    mine = range(accelerator.process_index, len(prompts), accelerator.num_processes)
    written = generate(
        model,
        [prompts[number].tokens for number in mine],
        list(mine),
        sampling,
        end_of_text=tokenizer.eos_token_id,
        batch_size=config.generation_batch_size,
        on_progress=reporter(f"Stage {stage}: writing texts", "texts", accelerator),
    )
    pairs = gather_object(list(zip(mine, written, strict=True)))
    return [tokens for _, tokens in sorted(pairs)]


def judge_texts(texts: list[str], different: int, encoder: Any, sentences: Any) -> dict[str, Any]:
    """The figures of texts that were cut to the lengths of all candidates.

    Where there are more texts than `different` prompts or human songs, these come in rounds. Distinct-n is that of a
    round, mean over whole rounds: the human song of a prompt is the same each time, and mustn't count as monotonous for it.
    """
    rounds = [texts[start : start + different] for start in range(0, len(texts) - different + 1, different)]
    units = [sentences.tokenize(text) if sentences else lines_of(text) for text in texts]
    distinct = sorted({unit for text_units in units for unit in text_units})
    vectors = dict(zip(distinct, encoder.encode(distinct, batch_size=64, show_progress_bar=False), strict=True))
    coherences = [coherence_of(text_units, vectors) for text_units in units]
    diversities = [lexical_diversity(text) for text in texts]
    return {
        "distinct_1": mean([distinct_n(each, 1) for each in rounds]),
        "distinct_2": mean([distinct_n(each, 2) for each in rounds]),
        "distinct_3": mean([distinct_n(each, 3) for each in rounds]),
        "lexical_diversity": mean(diversities),
        "coherence": mean(coherences),
        "texts_with_words": sum(bool(words_of(text)) for text in texts),
        "texts_with_two_units": sum(value is not None for value in coherences),
    }


def coherence_of(units: list[str], vectors: dict[str, Any]) -> float | None:
    """Local coherence of one text, from the embeddings of its lines or sentences."""
    return coherence(np.stack([vectors[unit] for unit in units])) if len(units) > 1 else None


def judge_likelihoods(result: StageResult) -> dict[str, Any]:
    """A stage's perplexities."""
    return {
        "perplexity": total(list(result.held_out.values())).perplexity,
        "perplexity_by_part": {str(part): likelihood.perplexity for part, likelihood in result.held_out.items()},
        "tokens_scored": total(list(result.held_out.values())).tokens,
        "perplexity_of_own_texts": result.own_text.perplexity if result.own_text.tokens else None,
    }


def samples_of(prompts: list[Prompt], candidates: dict[str, list[str]], lengths: list[int]) -> list[dict[str, Any]]:
    """Every text, uncut, with its prompt and the words of it that were compared."""
    return [
        {"prompt": number, "title": prompt.title, "stage": name, "words_compared": lengths[number],
         "prompt_text": prompt.text, "text": texts[number]}
        for number, prompt in enumerate(prompts)
        for name, texts in candidates.items()
    ]  # fmt: skip


if __name__ == "__main__":
    run_script(main)
