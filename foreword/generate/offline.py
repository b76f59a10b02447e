"""Offline generation and scoring of mixed batches, on top of Transformers' own `generate`.

Sampling, beams, stopping and caches are Transformers'; ours is only what a row's prompt changes: its prefix (injected
in attention), its soft tokens among the text, and the positions.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from foreword.backbone import Backbone
from foreword.baselines.autoprompt.trigger import Trigger
from foreword.data.examples import encode_source, get_format
from foreword.errors import ConfigError, PromptError
from foreword.prompts.bank import PrefixKV
from foreword.prompts.batch import Row, pack, place_inline, realise_all
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
        ConfigError: an option that GenerationConfig does not know.
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
    _check_options(options)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))
    size = batch_size or max(len(rows), 1)
    made: list[list[int]] = [[] for _ in rows]
    with _evaluating(prompts), _seeded(seed, backbone.device):
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
    with _evaluating(given):
        realised = realise_all(backbone, given)
        if not backbone.is_encoder_decoder:
            return _decoder_logits(backbone, rows, realised)
        if targets is None:
            raise PromptError("logits of an encoder-decoder are those of a target; pass targets=[...]")
        tokenise = backbone.tokenizer
        full = [
            Row(row.source, (tuple(tokenise(text).input_ids),)) for row, text in zip(rows, targets, strict=True)
        ]
        return _target_logits(backbone, full, realised)


def make_rows(
    backbone: Backbone, texts: Sequence[str], prompts: Sequence[Prompt] | SoftPrompt | PrefixKV | Trigger | None
) -> tuple[list[Row], list[Prompt]]:
    """Return token rows and one prompt a row, each text in its prompt's format.

    Raises:
        PromptError: the number of prompts is not the number of texts.
    """
    if isinstance(texts, str):
        raise PromptError("texts is one string; pass a list of strings")
    if prompts is None or isinstance(prompts, SoftPrompt | PrefixKV | Trigger):
        prompts = [prompts] * len(texts)
    if len(prompts) != len(texts):
        raise PromptError(f"{len(texts)} texts but {len(prompts)} prompts; give one prompt (or None) for each text")
    rows = [_row(backbone, text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
    return rows, [None if isinstance(prompt, Trigger) else prompt for prompt in prompts]


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
    inputs = dict(batch.inputs)
    if "inputs_embeds" in inputs and not backbone.is_encoder_decoder:
        _check_embedded(options)
    with activate(batch.injection):
        if backbone.is_encoder_decoder:
            inputs["encoder_outputs"] = backbone.model.get_encoder()(**inputs)
            for name in ("input_ids", "inputs_embeds"):
                inputs.pop(name, None)
        try:
            out = backbone.model.generate(
                **inputs, pad_token_id=backbone.tokenizer.pad_token_id, disable_compile=True, **options
            )
        except (ValueError, TypeError) as error:
            if "model_kwargs" in str(error) or "unexpected keyword" in str(error):
                raise ConfigError(f"generation option not known: {' '.join(str(error).split())}") from None
            if "inputs_embeds" in inputs and "inputs_embeds" in str(error):
                name = type(backbone.model).__name__
                raise PromptError(f"Transformers' {name} generates from token ids only, not with soft tokens") from None
            raise
    skip = inputs["input_ids"].shape[1] if "input_ids" in inputs else int(backbone.is_encoder_decoder)
    return [_until_stop(ids, _stop_ids(backbone, options)) for ids in out[:, skip:].tolist()]


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


def _check_options(options: dict[str, Any]) -> None:
    """Refuse what does not give one sequence a row."""
    if (options.get("num_return_sequences") or 1) > 1 or options.get("return_dict_in_generate"):
        raise ConfigError("num_return_sequences and return_dict_in_generate do not fit one text a row; repeat the text")
    new_len = options.get("max_new_tokens")
    if new_len is not None and new_len < 1:
        raise ConfigError(f"max_new_tokens = {new_len!r} must be at least 1")


def _stop_ids(backbone: Backbone, options: dict[str, Any]) -> set[int]:
    """Return the ids that end a sequence: as asked, as the model's generation config says, or the tokenizer's."""
    stop = options.get("eos_token_id", backbone.model.generation_config.eos_token_id)
    stop = backbone.tokenizer.eos_token_id if stop is None else stop
    return set(stop) if isinstance(stop, list) else {stop}


def _until_stop(ids: list[int], stop: set[int]) -> list[int]:
    """Return ids up to and with the first stopping token; what follows is padding."""
    end = next((i for i, token in enumerate(ids) if token in stop), len(ids))
    return ids[: end + 1]


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


@contextlib.contextmanager
def _seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Transformers samples from torch's global generator: seed it inside and put its state back after."""
    if seed is None:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


__all__ = ["Prompt", "generate", "generate_ids", "logits", "make_rows", "text_row"]
