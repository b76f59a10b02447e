"""A finished backbone as a directory that Transformers loads, with a model card that says what it is made of."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

_SAMPLE_PROMPTS = (
    "The river rises in the mountains of",
    "name : Bolverk | type : ship | built : 1871<|endoftext|>",
)

_FRONT = """---
license: cc-by-sa-4.0
language: en
library_name: transformers
tags: [foreword, soft-prompts]
---

# {name}

{shape} with {parameters:,} parameters (embeddings included, bfloat16), pretrained from nothing by Foreword as a frozen
backbone for soft prompts. {objective} It is small and was made to be steered and measured, not to be trusted: it
knows few facts and invents the rest.

## Training

| | |
|---|---|
{before}| steps | {steps:,} |
| tokens seen | {tokens:,} of {unique:,} packed |
| context | {context} tokens (positions up to {positions}) |
| copy-rich share of the rows | {copy:.0%}, in the decay {decay_copy:.0%} |
| device | {device} |
| recipe | `{file}` under `recipes/pretrain/`; resolved in `pretraining.json`, its losses in `loss_curve.jsonl` |

## Data and licence

Natural text: English Wikipedia (2019, CC BY-SA 3.0), service dialogues (Schema-Guided Dialogue, CC BY-SA 4.0), US
government blogs and speeches and the CIA factbook (public domain), Microsoft documentation (CC BY 4.0), OpenStax
textbooks (CC BY 4.0), African Storybook (CC BY), recipes, and novels from before 1930 (public domain).
The weights are derived from CC BY-SA text and are given under **CC BY-SA 4.0**; Foreword's code is Apache-2.0.

Copy-rich text, made by generators in `foreword/pretrain/copying/`: {copying}. No sentence of an
evaluation set is in it.

Overlap with evaluation sets: {overlap}

## Held-out bits per byte

{bits}

Held out by document (a hash of its text); rows of {context} tokens know nothing of each other.{seq2seq_note}

## Copying

| | |
|---|---|
| nats a token, first saying of a random span | {first_loss:.2f} |
| nats a token, second saying | {repeat_loss:.2f} |
| values of unseen records copied whole | {value_match:.0%} |

## Samples (greedy, 40 tokens)

{samples}

## Limits

English only; the tokenizer has no unknown token but rare scripts cost a token a byte. No instruction tuning, no
safety training. Text of the novels is a century old and shows the views of its time.
"""


def save_backbone(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, facts: dict[str, Any], curve: Path
) -> Path:
    """Write weights in bfloat16, config, tokenizer, facts, loss curve and the card; return the directory.

    The model given stays in its own precision.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copy.deepcopy(model).to("cpu", torch.bfloat16).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    _name_tokenizer_class(folder)
    (folder / "pretraining.json").write_text(json.dumps(facts, indent=2), encoding="utf-8")
    (folder / "README.md").write_text(write_card(facts, sample_texts(model, tokenizer)), encoding="utf-8")
    shutil.copy(curve, folder / "loss_curve.jsonl")
    return folder


def _name_tokenizer_class(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    tree = json.loads(path.read_text(encoding="utf-8"))
    tree["tokenizer_class"] = "PreTrainedTokenizerFast"  # known to Transformers 4 and 5
    path.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")


def sample_texts(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> list[tuple[str, str]]:
    """Return (prompt, greedy continuation of 40 tokens) pairs."""
    training, samples = model.training, []
    model.eval()
    for prompt in _SAMPLE_PROMPTS:
        inputs = torch.tensor([tokenizer(prompt)["input_ids"]], device=model.device)
        with torch.no_grad():
            output = model.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=40, do_sample=False)[
                0
            ]
        start = 0 if model.config.is_encoder_decoder else inputs.shape[1]
        samples.append((prompt, tokenizer.decode(output[start:], skip_special_tokens=True)))
    model.train(training)
    return samples


def write_card(facts: dict[str, Any], samples: list[tuple[str, str]]) -> str:
    """Return the card's Markdown from the facts of a run and samples of its model."""
    recipe = facts["recipe"]
    share = recipe["data"]["copy_share"] if recipe["copy_share"] is None else recipe["copy_share"]
    decoder = recipe["family"] == "decoder"
    streams = facts["manifest"]["streams"]
    rows = "\n".join(f"| {source} | {bits:.3f} |" for source, bits in sorted(facts["heldout"].items()))
    return _FRONT.format(
        name=recipe["name"],
        file=f"{recipe['name'].removeprefix('foreword-')}.yaml",
        shape="A Llama-shaped decoder" if decoder else "A T5 v1.1-shaped encoder-decoder (embeddings tied)",
        objective=_OBJECTIVES[recipe["objective"]],
        unique=sum(stream["tokens"] for name, stream in streams.items() if name.startswith("train/")),
        copy=share,
        decay_copy=share if recipe["decay_copy_share"] is None else recipe["decay_copy_share"],
        copying="; ".join(_COPYING[name] for name in recipe["data"]["copying"]),
        before=_before(facts.get("before")),
        overlap=_overlap(facts["manifest"]["overlap"]),
        bits=f"| source | bits per byte |\n|---|---|\n{rows}",
        seq2seq_note="" if decoder else " The encoder reads the first half of a row; the bits are the second half's.",
        samples="\n".join(f"- `{prompt}` … {json.dumps(text, ensure_ascii=False)}" for prompt, text in samples),
        **{key: facts[key] for key in ("parameters", "steps", "tokens", "device")},
        **{key: recipe[key] for key in ("context", "positions")},
        **facts["copy"],
    )


_COPYING = {
    "records": (
        "records of invented things in 26 domains (books, companies, rivers, flights, ...; no venues) in many formats, "
        "with sentences that state them"
    ),
    "briefs": (
        "briefs, which are records of flats, plumbers, phones, trams and other things (no venues, and no key of E2E's) "
        "in sentences that state several fields each, also where a thing lies, what it costs and how it is rated"
    ),
    "echoes": "facts, keywords, blanks and repeats made from the corpora's own sentences",
    "labels": "invented opinions with labels",
    "spans": "repeated spans of random words",
}

_OBJECTIVES = {
    "causal": "Objective: causal language modelling.",
    "span_corruption": "Objective: T5's span corruption (15 %, mean span 3), without LM adaptation.",
    "prefix_lm": "Objective: T5's span corruption, then prefix-LM adaptation (Lester et al. 2021).",
}


def _before(life: dict[str, Any] | None) -> str:
    """Return a table row for every run whose weights this one went on from, the first one first."""
    if life is None:
        return ""
    recipe = life["recipe"]
    made = f"{life['steps']:,} steps, {life['tokens']:,} tokens, {recipe['objective']}"
    row = f"| goes on from | `{recipe['name']}`: {made} |"
    return f"{_before(life.get('before'))}{row}\n"


def _overlap(report: dict[str, Any] | None) -> str:
    if report is None:
        return "not checked."
    touched = ", ".join(f"{name} {count}" for name, count in report["touched"].items())
    return (
        f"of {report['documents']:,} training documents, those sharing a 13-gram of words with the dev or test set of "
        f"each: {touched}. The {report['dropped']:,} that share two or more were dropped."
    )
