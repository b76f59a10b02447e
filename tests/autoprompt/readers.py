"""Tiny readers of every kind of model, a tiny BERT with its tokenizer, and a small classification task in files."""

import json
from pathlib import Path

import torch
import transformers as tf
from backbones import make
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from foreword.backbone import Backbone
from foreword.baselines.autoprompt.masked import MaskedBackbone, wrap_masked
from foreword.baselines.autoprompt.reader import Reader, TriggerExample, kind_of
from foreword.baselines.autoprompt.template import ANSWER, SLOT

KINDS = ("gpt2", "llama", "gemma3", "opt", "t5", "bart", "bert")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def bert_tokenizer() -> tf.PreTrainedTokenizerFast:
    """Return a tokenizer with one token a printable character, framed as BERT's."""
    vocab = {token: i for i, token in enumerate([*SPECIAL, *(chr(c) for c in range(33, 127)), "▁"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    core.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="never", split=False)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, mask_token="[MASK]", **names)


def bert_model(seed: int = 0) -> tf.PreTrainedModel:
    torch.manual_seed(seed)
    model = tf.BertForMaskedLM(
        tf.BertConfig(
            vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
            max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
        )
    )
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(6.0)
    return model


def bert(seed: int = 0) -> MaskedBackbone:
    return wrap_masked(bert_model(seed), bert_tokenizer(), source="tests/bert")


def backbone(name: str) -> Backbone:
    return bert() if name == "bert" else make(name)


def examples(owner: Backbone, labelled: bool, count: int = 6) -> list[TriggerExample]:
    """Return rows of unequal length, two slots each, with labels or targets of unequal length."""
    masked = kind_of(owner) == "masked"
    rows = []
    for i in range(count):
        source = [20 + (7 * i + 3 * k) % 60 for k in range(2 + i % 3)]
        ids = [*source, SLOT, 15 + i, SLOT, *([ANSWER, 14] if masked else [17])]
        target = [30 + (11 * i + k) % 50 for k in range(1 if masked else 1 + i % 3)]
        label = ("no", "yes")[i % 2] if labelled else None
        rows.append(TriggerExample(tuple(ids), (0,) if labelled else tuple(target), label))
    return rows


LABELS = {"no": (40, 41), "yes": (50, 51, 52)}


def reader(name: str, labelled: bool) -> Reader:
    return Reader(backbone(name), LABELS if labelled else {})


def losses_by_hand(mine: Reader, rows: list[TriggerExample], words: torch.Tensor) -> torch.Tensor:
    """Return each row's loss from a model that is run on one row at a time, with no padding and its whole head.

    Args:
        words: [K, E] embeddings that are put at the slots.
    """
    model, embed = mine.backbone.model, mine.backbone.model.get_input_embeddings()
    found = []
    for row in rows:
        ids = [mine.backbone.tokenizer.mask_token_id if token == ANSWER else token for token in row.ids]
        read = ids + list(row.target[:-1]) if mine.kind == "decoder" else ids
        slot, vectors = 0, []
        for token in read:
            vectors.append(words[slot] if token == SLOT else embed(torch.tensor(token)))
            slot += token == SLOT
        inputs = {"inputs_embeds": torch.stack(vectors)[None], "attention_mask": torch.ones(1, len(read)).long()}
        if mine.kind == "encoder_decoder":
            start = model.config.decoder_start_token_id
            inputs["decoder_input_ids"] = torch.tensor([[start, *row.target[:-1]]])
        log_p = model(**inputs).logits[0].float().log_softmax(-1)
        first = row.ids.index(ANSWER) if mine.kind == "masked" else len(ids) - 1 if mine.kind == "decoder" else 0
        if row.label is not None:
            found.append(-torch.log(sum(log_p[first, word].exp() for word in mine.labels[row.label])))
        else:
            found.append(-sum(log_p[first + k, token] for k, token in enumerate(row.target)))
    return torch.stack(found)


def save_bert(folder: Path) -> Path:
    bert_model().save_pretrained(folder)
    bert_tokenizer().save_pretrained(folder)
    return folder


def save_task(folder: Path, targets: tuple[str, str] = ("n", "y"), labels: bool = True) -> Path:
    """Write a task of two labels: a source of vowels is `y`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(40):
        letters = "aeiou" if i % 2 else "bcdfg"
        rows.append({"s": "".join(letters[(3 * i + k) % 5] for k in range(2 + i % 4)), "t": "ny"[i % 2]})
    for name, part in (("train", rows[:28]), ("dev", rows[28:])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
    task = {
        "name": "vowels", "source": "{s}", "target": "{t}", "metrics": ["accuracy"],
        "train": "train.jsonl", "dev": "dev.jsonl", "test": "dev.jsonl", "generation": {"max_new_tokens": 3},
    }
    if labels:
        task["label_words"] = {"n": targets[0], "y": targets[1]}
    (folder / "task.yaml").write_text(json.dumps(task), encoding="utf-8")
    return folder / "task.yaml"
