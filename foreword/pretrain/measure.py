"""What a checkpoint is judged by: held-out bits per byte by source, and whether it copies from its context."""

import math
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from foreword.pretrain.batch import Batch, Loss, make_batch, row_context
from foreword.pretrain.copying.values import Lexicon, ValueMaker
from foreword.pretrain.objectives import shift_right
from foreword.pretrain.pack import GIVEN, read_row
from foreword.pretrain.tokenizer import SENTINELS, byte_lengths

_SPAN, _ROWS = 64, 8


@dataclass(frozen=True)
class Ruler:
    """Measures models of one tokenizer on the held-out streams of prepared data."""

    tokenizer: PreTrainedTokenizerFast
    streams: dict[str, np.ndarray]  # held-out tokens by source
    context: int
    seed: int = 0

    def measure(self, model: PreTrainedModel, tokens: int) -> dict[str, dict[str, float]]:
        """Return `{"heldout": bits per byte by source, "copy": scores}`; the model's mode is given back.

        Args:
            model: a decoder, or an encoder-decoder, whose bits are those of the second half of each row.
            tokens: at most so many tokens of each source are read.
        """
        training = model.training
        model.eval()
        # Rows here have other shapes than training's, and each would be compiled anew.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            heldout = {name: self.bits_per_byte(model, stream, tokens) for name, stream in self.streams.items()}
            scores = {"heldout": heldout, "copy": self.copy_scores(model)}
        model.train(training)
        return scores

    def bits_per_byte(self, model: PreTrainedModel, stream: np.ndarray, tokens: int) -> float:
        """Return the bits per byte of UTF-8 of a stream, read in rows that know nothing of each other."""
        batches = (_text_batch(model, part) for part in _parts(stream, self.context, tokens))
        return self._bits(model, batches, model.config.vocab_size)

    def span_bits_per_byte(self, model: PreTrainedModel, stream: np.ndarray, tokens: int) -> float:
        """Return the bits per byte of the text that span corruption takes out of a stream; sentinels do not count.

        What an encoder-decoder before its LM adaptation is to be judged by: running text is nothing it learned.
        """
        rng, vocabulary = np.random.default_rng(self.seed), model.config.vocab_size
        parts = _parts(stream, row_context("span_corruption", self.context), tokens)
        batches = (make_batch("span_corruption", part, rng, vocabulary) for part in parts)
        return self._bits(model, batches, vocabulary - SENTINELS)

    def _bits(self, model: PreTrainedModel, batches: Iterable[Batch], end: int) -> float:
        """Return the bits per byte of the targets below the id `end`."""
        lengths = torch.from_numpy(byte_lengths(self.tokenizer))
        nats, size = 0.0, 0
        for batch in batches:
            targets = batch.targets.flatten()
            counted = (targets >= 0) & (targets < end)
            nats += float(_losses(model, batch)[counted].sum())
            size += int(lengths[targets[counted]].sum())
        return nats / math.log(2) / max(size, 1)

    def copy_scores(self, model: PreTrainedModel) -> dict[str, float]:
        """Return the copying scores.

        `repeat_loss`: nats a token on a random span's second saying (`first_loss`: on its first);
        `value_match`: share of values of a `key : value` record, with names never seen, that greedy decoding copies
        whole into a sentence; two other records with their sentences stand before it.
        """
        first, second = self._repeat_losses(model)
        return {"first_loss": first, "repeat_loss": second, "value_match": self._value_match(model)}

    def _repeat_losses(self, model: PreTrainedModel) -> tuple[float, float]:
        rng = np.random.default_rng(self.seed)
        spans = rng.integers(2, len(self.tokenizer) - 100, size=(2 * _ROWS, _SPAN))
        twice = np.concatenate([spans, spans], axis=1)
        if model.config.is_encoder_decoder:
            # The encoder reads the span and its beginning again; the decoder is to go on.
            inputs = np.concatenate([spans, spans[:, :8]], axis=1)
            batch = _pair_batch(torch.from_numpy(inputs), torch.from_numpy(spans[:, 8:]))
            return math.log(len(self.tokenizer)), float(_losses(model, batch).mean())
        losses = _losses(model, Batch(torch.from_numpy(twice[:, :-1]), torch.from_numpy(twice[:, 1:])))
        losses = losses.view(len(twice), -1)
        return float(losses[:, : _SPAN - 1].mean()), float(losses[:, _SPAN:].mean())

    def _value_match(self, model: PreTrainedModel, count: int = 64) -> float:
        rng = random.Random(self.seed)
        hits = sum(self._copies(model, *_copy_case(rng)) for _ in range(count))
        return hits / count

    def _copies(self, model: PreTrainedModel, text: str, answer: str) -> bool:
        prompt = torch.tensor([self.tokenizer(text)["input_ids"]])
        wanted = torch.tensor([self.tokenizer(answer)["input_ids"]])
        if model.config.is_encoder_decoder:
            batch = _pair_batch(prompt, wanted)
        else:
            whole = torch.cat([prompt, wanted], dim=1)
            batch = Batch(whole[:, :-1], whole[:, 1:])
        logits = _logits(model, batch)[:, -wanted.shape[1] :]
        # Teacher-forced: all argmaxes right is the same as greedy decoding giving the value.
        return bool((logits.argmax(-1).cpu() == wanted).all())


def _parts(stream: np.ndarray, context: int, tokens: int) -> Iterator[np.ndarray]:
    """Yield batches `[rows, context + 1]` of a stream's first `tokens`, at least one row; a short stream is one row."""
    context = min(context, len(stream) - 1)
    rows = [read_row(stream, i, context, 0) for i in range(max(min(len(stream), tokens) // context, 1))]
    for start in range(0, len(rows), _ROWS):
        yield np.stack(rows[start : start + _ROWS])


def _copy_case(rng: random.Random) -> tuple[str, str]:
    """Return (three `key : value` records with sentences, the last one broken off before a value; that value)."""
    maker = ValueMaker(rng, Lexicon())
    lines = []
    for _ in range(3):
        name, colour, town, keeper = maker.syllables(), maker.syllables(), maker.syllables(), maker.syllables()
        lines.append(f"name : {name} | maker : {colour} | town : {town} | keeper : {keeper}\n{name} comes from {town}.")
    text = "\n".join(lines)
    return text[: text.rindex(" from ") + 5], f" {town}"


def _text_batch(model: PreTrainedModel, rows: np.ndarray) -> Batch:
    if model.config.is_encoder_decoder:
        rows, half = rows & (GIVEN - 1), rows.shape[1] // 2
        return _pair_batch(torch.from_numpy(rows[:, :half]), torch.from_numpy(rows[:, half:]))
    return make_batch("causal", rows, np.random.default_rng(0), model.config.vocab_size)


def _pair_batch(inputs: Tensor, targets: Tensor) -> Batch:
    shifted = torch.from_numpy(shift_right(targets.numpy(), start=0))
    return Batch(inputs, torch.where(targets == 0, -100, targets), shifted)


def _losses(model: PreTrainedModel, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    with _autocast(device):
        return Loss(compiled=False).per_target(model, batch.to(device)).cpu()


def _logits(model: PreTrainedModel, batch: Batch) -> Tensor:
    device = next(model.parameters()).device
    with _autocast(device):
        batch = batch.to(device)
        return (
            model(input_ids=batch.inputs, decoder_input_ids=batch.decoder_inputs).logits
            if (batch.decoder_inputs is not None)
            else model(input_ids=batch.inputs, use_cache=False).logits
        )


def _autocast(device: torch.device) -> torch.autocast:
    # Float32 on a CPU, so that figures do not depend on its bf16 kernels.
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
