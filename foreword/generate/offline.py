"""Offline generation and scoring of mixed batches, on top of Transformers' own `generate`.

Sampling, beams, stopping and caches are Transformers'; ours is only what a row's prompt changes: its prefix (injected
in attention), its soft tokens among the text, and the positions.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.baselines.autoprompt.trigger import Trigger
from foreword.config import check_seed
from foreword.data.examples import encode_source, get_format
from foreword.errors import ConfigError, PromptError
from foreword.generate.cache import with_room
from foreword.prompts.bank import PrefixKV
from foreword.prompts.batch import Row, check_tokens, pack, place_inline, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad, pad_targets
from foreword.prompts.soft_prompt import Realised, SoftPrompt
from foreword.shapes import Logits

Prompt = SoftPrompt | PrefixKV | Realised | Trigger | None


def generate(
    backbone: Backbone,
    texts: Sequence[str],
    prompts: Sequence[Prompt] | SoftPrompt | PrefixKV | Trigger | None = None,
    *,
    max_new_tokens: int = 64,
    num_beams: int = 1,
    do_sample: bool = False,
    seed: int | None = None,
    batch_size: int | None = None,
    bad_words: Sequence[str] = (),
    **options: Any,
) -> list[str]:
    """Return one continuation a text, each row with its own prompt, all rows in one batch.

    A prompt that was trained with a text format (a task's separators) has it put around its rows' texts; rows
    without a prompt, and PEFT's prompts, take the text as the tokenizer does.

    Args:
        backbone: the frozen model.
        texts: B texts.
        prompts: B prompts (None for none), or one for all rows.
        max_new_tokens: at most this many tokens a row.
        num_beams: 1 is greedy or sampling, more is beam search.
        do_sample: sample instead of taking the most likely token.
        seed: of the sampling; None draws one from torch's global generator.
        batch_size: rows in one pass; None takes all at once.
        bad_words: strings that must not be generated.
        **options: any other field of Transformers' GenerationConfig (temperature, top_p, length_penalty, ...).

    Raises:
        PromptError: a prompt does not fit the backbone or the row's length.
        ConfigError: an option that GenerationConfig does not know, or a value that it cannot take.
    """
    rows, given = make_rows(backbone, texts, prompts)
    if bad_words:
        options["bad_words_ids"] = _bad_word_ids(backbone, bad_words)
    options |= {"max_new_tokens": max_new_tokens, "num_beams": num_beams, "do_sample": do_sample}
    sequences = generate_ids(backbone, rows, given, seed=seed, batch_size=batch_size, **options)
    decoded = [backbone.tokenizer.decode(ids, skip_special_tokens=True) for ids in sequences]
    return [text.strip() if _format_name(p) else text for text, p in zip(decoded, given, strict=True)]


@torch.no_grad()
def generate_ids(
    backbone: Backbone,
    rows: Sequence[Row],
    prompts: Sequence[Prompt],
    *,
    seed: int | None = None,
    batch_size: int | None = None,
    **options: Any,
) -> list[list[int]]:
    """Return the new token ids of each row, without padding, the stopping token included.

    Rows of similar length share a batch; the order of the result is that of `rows`.
    """
    _check_options(options, seed, batch_size)
    options = {**options, **_stopping(backbone, options)}
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))
    size = batch_size or max(len(rows), 1)
    made: list[list[int]] = [[] for _ in rows]
    with _evaluating(prompts), _sampling(bool(options.get("do_sample")), seed, backbone.device):
        realised = realise_all(backbone, prompts)
        _check_sources(backbone, rows, realised)
        for start in range(0, len(order), size):
            chunk = order[start : start + size]
            new = _generate_batch(backbone, [rows[i] for i in chunk], [realised[i] for i in chunk], options)
            for i, ids in zip(chunk, new, strict=True):
                made[i] = ids
    return made


@torch.no_grad()
def logits(
    backbone: Backbone,
    texts: Sequence[str],
    prompts: Sequence[Prompt] | SoftPrompt | PrefixKV | Trigger | None = None,
    *,
    targets: Sequence[str] | None = None,
) -> list[Logits]:
    """Return [T, V] logits for each text's own tokens; the prompt's virtual tokens have none.

    Args:
        backbone: the frozen model.
        texts: B texts.
        prompts: B prompts (None for none), or one for all rows.
        targets: for an encoder-decoder, B target texts: the logits are then those of the target's tokens.

    Raises:
        PromptError: an encoder-decoder without targets, or a prompt that does not fit.
    """
    rows, given = make_rows(backbone, texts, prompts)
    if not rows:
        return []
    with _evaluating(given):
        realised = realise_all(backbone, given)
        if not backbone.is_encoder_decoder:
            return _decoder_logits(backbone, rows, realised)
        if targets is None:
            raise PromptError("logits of an encoder-decoder are those of a target; pass targets=[...]")
        return _target_logits(backbone, _with_targets(backbone, rows, targets), realised)


def _with_targets(backbone: Backbone, rows: Sequence[Row], targets: Sequence[str]) -> list[Row]:
    _check_texts(targets, "targets")
    if len(targets) != len(rows):
        raise PromptError(f"{len(rows)} texts but {len(targets)} targets; give one target for each text")
    made = [Row(row.source, (tuple(backbone.tokenizer(t).input_ids),)) for row, t in zip(rows, targets, strict=True)]
    if empty := [number for number, row in enumerate(made) if not row.targets[0]]:
        raise PromptError(f"target {empty[0]} has no token, so it has no logits; give it at least one")
    return made


def make_rows(
    backbone: Backbone, texts: Sequence[str], prompts: Sequence[Prompt] | SoftPrompt | PrefixKV | Trigger | None
) -> tuple[list[Row], list[Prompt]]:
    """Return token rows and one prompt a row, each text in its prompt's format.

    Raises:
        PromptError: the number of prompts is not the number of texts, or something is no text or no prompt.
    """
    _check_texts(texts, "texts")
    if isinstance(prompts, str | Path):
        raise PromptError(f"prompts = {str(prompts)!r} is a name, not a prompt; load it with load_prompt")
    if prompts is None or isinstance(prompts, SoftPrompt | PrefixKV | Realised | Trigger):
        prompts = [prompts] * len(texts)
    if len(prompts) != len(texts):
        raise PromptError(f"{len(texts)} texts but {len(prompts)} prompts; give one prompt (or None) for each text")
    for number, prompt in enumerate(prompts):
        if prompt is not None and not isinstance(prompt, SoftPrompt | PrefixKV | Realised | Trigger):
            raise PromptError(f"prompts[{number}] = {prompt!r:.60} is no prompt; load a saved one with load_prompt")
    rows = [_row(backbone, text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
    return rows, [None if isinstance(prompt, Trigger) else prompt for prompt in prompts]


def _check_texts(texts: Sequence[str], name: str) -> None:
    if isinstance(texts, str):
        raise PromptError(f"{name} is one string; pass a list of strings")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise PromptError(f"{name}[{number}] = {text!r:.60} is a {type(text).__name__}, not a text")


def _row(backbone: Backbone, text: str, prompt: Prompt) -> Row:
    if isinstance(prompt, Trigger):  # written words: they are in the row, and nothing else is needed
        return Row(prompt.rows(backbone, [text])[0])
    return text_row(backbone, text, _format_name(prompt))


def text_row(backbone: Backbone, text: str, format_name: str | None) -> Row:
    """Return a text as a token row: in the named format, or for None as the tokenizer does it."""
    if format_name is None:
        return Row(tuple(backbone.tokenizer(text).input_ids))
    form = get_format(format_name, backbone.is_encoder_decoder)
    return Row(encode_source(backbone.tokenizer, text, form), tail=form.tail)


def _format_name(prompt: Prompt) -> str | None:
    return prompt.format if isinstance(prompt, SoftPrompt) else None


def _generate_batch(
    backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None], options: dict[str, Any]
) -> list[list[int]]:
    """Return new ids of one batch, cut after the stopping token."""
    batch = pad(backbone, rows, realised, new_len=options.get("max_new_tokens") or 0)
    if "inputs_embeds" in batch.inputs and not backbone.is_encoder_decoder:
        _check_embedded(options)
    inputs, injection = with_room(backbone, batch, options)
    with activate(injection):
        if backbone.is_encoder_decoder:
            inputs["encoder_outputs"] = backbone.model.get_encoder()(**batch.inputs)
            for name in ("input_ids", "inputs_embeds"):
                inputs.pop(name, None)
        fixed = {"pad_token_id": backbone.tokenizer.pad_token_id, "disable_compile": True}
        try:
            out = backbone.model.generate(**inputs, **{**fixed, **options})
        except (ValueError, TypeError) as error:
            said = " ".join(str(error).split())
            if "model_kwargs" in said or "unexpected keyword" in said:
                raise ConfigError(f"generation option not known: {said}") from None
            if "inputs_embeds" in inputs and "inputs_embeds" in said:
                name = type(backbone.model).__name__
                raise PromptError(f"Transformers' {name} generates from token ids only, not with soft tokens") from None
            if isinstance(error, ValueError):  # how Transformers refuses an option's value
                raise ConfigError(f"generation options cannot work: {said}") from error
            raise
    skip = inputs["input_ids"].shape[1] if "input_ids" in inputs else int(backbone.is_encoder_decoder)
    stop, pad_id = _stop_ids(backbone, options), fixed["pad_token_id"] if options.get("stop_strings") else None
    return [_until_stop(ids, stop, pad_id) for ids in out[:, skip:].tolist()]


def _check_embedded(options: dict[str, Any]) -> None:
    """Refuse what Transformers can only do from token ids, where soft tokens stand among a row's text."""
    for name in ("prefill_chunk_size", "assistant_model", "prompt_lookup_num_tokens"):
        if options.get(name):
            raise PromptError(f"{name} needs rows of token ids alone; leave it out for suffixes and infixes")


def _check_sources(backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None]) -> None:
    """Refuse a row without any token to start from, by its number among the texts given."""
    bos = backbone.tokenizer.bos_token_id
    for number, (row, prompt) in enumerate(zip(rows, realised, strict=True)):
        if not place_inline(row.source, prompt, bos, row.tail)[0]:
            raise PromptError(f"text {number} has no token to start from; give it at least one")
        check_tokens(backbone, row.source, f"text {number}")


def _check_options(options: dict[str, Any], seed: int | None, batch_size: int | None) -> None:
    """Refuse what does not give one sequence a row."""
    if seed is not None:
        check_seed(seed)
    for name, value in {"batch_size": batch_size, "num_beams": options.get("num_beams")}.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name} = {value!r} must be at least 1")
    if (options.get("num_return_sequences") or 1) > 1 or options.get("return_dict_in_generate"):
        raise ConfigError("num_return_sequences and return_dict_in_generate do not fit one text a row; repeat the text")
    new_len = options.get("max_new_tokens")
    if new_len is not None and new_len < 1:
        raise ConfigError(f"max_new_tokens = {new_len!r} must be at least 1")


def ending_ids(backbone: Backbone) -> list[int]:
    """Return the ids that end an answer, offline and when served: the generation config's, and the tokenizer's EOS.

    Every target ends with the tokenizer's EOS (law 10), which the model's generation config may not know.
    """
    known, eos = backbone.model.generation_config.eos_token_id, backbone.tokenizer.eos_token_id
    ids = set() if known is None else set(known) if isinstance(known, list) else {known}
    return sorted(ids | ({eos} if eos is not None else set()))


def _stopping(backbone: Backbone, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options by which a row stops where Transformers alone would not: all endings, and a tokenizer."""
    made: dict[str, Any] = {"tokenizer": backbone.tokenizer} if options.get("stop_strings") else {}
    endings, known = ending_ids(backbone), backbone.model.generation_config.eos_token_id
    if "eos_token_id" not in options and endings not in ([], [known], known):
        made["eos_token_id"] = endings
    return made


def _stop_ids(backbone: Backbone, options: dict[str, Any]) -> set[int]:
    """Return the ids that end a sequence: as asked, as the model's generation config says, or the tokenizer's."""
    stop = options.get("eos_token_id", backbone.model.generation_config.eos_token_id)
    stop = backbone.tokenizer.eos_token_id if stop is None else stop
    return set(stop) if isinstance(stop, list) else {stop}


def _until_stop(ids: list[int], stop: set[int], pad_id: int | None = None) -> list[int]:
    """Return ids up to and with the first stopping token; what follows is padding.

    With `pad_id`, padding at the end goes too: a row that a stop string ended has no stopping token.
    """
    end = next((i for i, token in enumerate(ids) if token in stop), len(ids))
    ids = ids[: end + 1]
    while pad_id is not None and pad_id not in stop and ids and ids[-1] == pad_id:
        ids.pop()
    return ids


def _bad_word_ids(backbone: Backbone, words: Sequence[str]) -> list[list[int]]:
    ids = [backbone.tokenizer(word, add_special_tokens=False).input_ids for word in words]
    return [word for word in ids if word]


def _decoder_logits(
    backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None]
) -> list[Logits]:
    if not backbone.geometry.sites:
        return _padded_logits(backbone, rows, realised)
    batch = pack(backbone, rows, realised, all_positions=True)
    with activate(batch.injection):
        out = backbone.model(**batch.inputs, logits_to_keep=batch.predict_at, use_cache=False).logits[0]
    return [out[batch.row_of_label == number] for number in range(len(rows))]


def _padded_logits(
    backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None]
) -> list[Logits]:
    """The same for a model outside the attention interface (BLOOM, Mamba): one row at a time, so nothing is padded."""
    made = []
    for row, prompt in zip(rows, realised, strict=True):
        batch = pad(backbone, [row], [prompt])
        out = backbone.model(**batch.inputs, use_cache=False).logits
        made.append(out[batch.text])
    return made


def _target_logits(
    backbone: Backbone, rows: Sequence[Row], realised: Sequence[Realised | None]
) -> list[Logits]:
    """Return the logits of each row's one target on an encoder-decoder."""
    batch = pad(backbone, rows, realised)
    decoder_ids, labels, _ = pad_targets(backbone, rows)
    with activate(batch.injection):
        out = backbone.model(**batch.inputs, decoder_input_ids=decoder_ids, use_cache=False).logits
    return [row[label >= 0] for row, label in zip(out, labels, strict=True)]


@contextlib.contextmanager
def _evaluating(prompts: Sequence[Prompt]) -> Iterator[None]:
    """Switch the prompts' dropout off inside, and back to what it was."""
    training = {id(p): p for p in prompts if isinstance(p, SoftPrompt) and p.training}
    for prompt in training.values():
        prompt.eval()
    try:
        yield
    finally:
        for prompt in training.values():
            prompt.train()


_ONE_SAMPLER = threading.Lock()


@contextlib.contextmanager
def _sampling(samples: bool, seed: int | None, device: torch.device) -> Iterator[None]:
    """Transformers samples from torch's global generator: seed it inside and put its state back after.

    All threads share that generator, so those that sample take turns; greedy and beam search never wait.
    """
    if not samples:
        yield
        return
    with _ONE_SAMPLER, contextlib.ExitStack() as stack:
        if seed is not None:
            stack.enter_context(torch.random.fork_rng(devices=[device] if device.type == "cuda" else []))
            torch.manual_seed(seed)
        yield


__all__ = ["Prompt", "generate", "generate_ids", "logits", "make_rows", "text_row"]
