"""Is this prompt alive? One examination: does it fit, does gradient reach all of it, does it change anything, and
does generation say what the full forward pass says. Nothing is trained and nothing is changed.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreword.backbone import Backbone
from foreword.errors import PromptError
from foreword.generate.offline import generate_ids
from foreword.prompts.batch import Row, realise_all
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad, pad_targets
from foreword.prompts.soft_prompt import SoftPrompt
from foreword.prompts.token_space import token_space
from foreword.train.loss import target_loss

TEXTS = (
    "The small boat left the harbour before the storm came in from the west.",
    "name : Blue Door, food : pasta, area : riverside, price : moderate",
    "She asked three questions, and the answer to each of them was the same.",
)
NEW_TOKENS = 8
MOST_SOURCE = 8
NEAREST = 3
SAMPLED_TOKENS = 512
NORM_RATIOS = (0.01, 100.0)
DEAD_SHARE = 0.01
WINDOW_HINT = "if a sliding window hides them, a shorter prompt or prompt.window = 'always' helps"


@dataclass(frozen=True)
class Check:
    """One question, whether the answer is the good one, and the figures."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Neighbour:
    """A virtual token's nearest vocabulary tokens, each with its cosine."""

    position: int
    tokens: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Findings:
    """What an examination found.

    Attributes:
        checks: in the order in which they were made; a check that makes no sense after a failed one is left out.
        nearest: for each virtual token the nearest vocabulary tokens; empty where that is not applicable.
        nearest_of: what was compared, or why nothing was.
    """

    checks: tuple[Check, ...]
    nearest: tuple[Neighbour, ...] = ()
    nearest_of: str = ""

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        """Return the findings for a terminal, one line a check and one a virtual token."""
        width = max(len(check.name) for check in self.checks)
        made = [f"{'ok  ' if c.passed else 'FAIL'}  {c.name:<{width}}  {c.detail}" for c in self.checks]
        if self.nearest_of:
            made.append(f"nearest vocabulary tokens: {self.nearest_of}")
        for near in self.nearest:
            tokens = ", ".join(f"{token!r} {cosine:.2f}" for token, cosine in near.tokens)
            made.append(f"  {near.position:>3}  {tokens}")
        return made

    def to_dict(self) -> dict[str, Any]:
        """Return the findings as plain values, ready for JSON."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(eq=False)
class _Examination:
    """The patient and what is needed to look at it."""

    prompt: SoftPrompt
    backbone: Backbone
    rows: list[Row]
    generator: torch.Generator
    checks: list[Check] = field(default_factory=list)

    def note(self, name: str, faults: Sequence[str], fine: str) -> bool:
        """Keep one check: it passed if there are no faults."""
        self.checks.append(Check(name, not faults, "; ".join(faults) or fine))
        return not faults


def examine(
    prompt: SoftPrompt,
    backbone: Backbone,
    texts: Sequence[str] | None = None,
    generator: torch.Generator | None = None,
) -> Findings:
    """Return what is wrong with a prompt, if anything; prompt and backbone stay as they are.

    Args:
        prompt: any soft prompt, trained or fresh, on the backbone's device.
        backbone: the model that it is meant for.
        texts: texts of the kind that the prompt was trained for, of at least two tokens each; None takes three
            English lines.
        generator: CPU generator that samples the vocabulary for the norms; None takes seed 0.

    Raises:
        PromptError: a text has fewer than two tokens.
    """
    generator = generator or torch.Generator().manual_seed(0)
    patient = _Examination(prompt, backbone, _rows(backbone, TEXTS if texts is None else texts), generator)
    training = prompt.training
    prompt.eval()
    try:
        if not _check_backbone(patient) or not _check_finite(patient):
            return Findings(tuple(patient.checks))
        _check_gradient(patient)
        _check_effect(patient)
        _check_generation(patient)
        _check_norms(patient)
        nearest, nearest_of = _nearest(patient)
    finally:
        prompt.train(training)
    return Findings(tuple(patient.checks), nearest, nearest_of)


def _rows(backbone: Backbone, texts: Sequence[str]) -> list[Row]:
    """Return each text cut in two: its start as source, the rest and EOS as target.

    The source is short, so that a sliding window hides no prefix from the target's first tokens.
    """
    rows, eos = [], backbone.tokenizer.eos_token_id
    for text in texts:
        ids = tuple(backbone.tokenizer(text, add_special_tokens=False).input_ids)
        if len(ids) < 2:
            raise PromptError(f"text {text!r} has {len(ids)} tokens; the examination needs at least 2")
        half = min(len(ids) // 2, MOST_SOURCE)
        rows.append(Row(ids[:half], ((*ids[half:], *([] if eos is None else [eos])),)))
    return rows


def _check_backbone(patient: _Examination) -> bool:
    try:
        patient.prompt.check_backbone(patient.backbone)
    except PromptError as error:
        return patient.note("backbone", [str(error)], "")
    known = patient.prompt.fingerprint is not None
    detail = "widths, config, tokenizer and weights agree" if known else "widths agree; the prompt has no fingerprint"
    return patient.note("backbone", [], detail)


def _check_finite(patient: _Examination) -> bool:
    prompt = patient.prompt
    named = dict(prompt.named_parameters()) | {f"table {name}": prompt.table(name) for name in prompt.tables}
    bad = {name: int((~tensor.isfinite()).sum()) for name, tensor in named.items()}
    faults = [f"{name} has {count} NaN or infinite values" for name, count in bad.items() if count]
    return patient.note("finite", faults, f"{prompt.num_parameters:,} parameters")


def _check_gradient(patient: _Examination) -> None:
    """Two checks from one backward pass: gradient reaches every tensor, and no part of one is dead."""
    prompt, made = patient.prompt, {}
    hooks = [
        table.register_forward_hook(lambda _, args, out, name=name: made.setdefault(name, []).append(out))
        for name, table in prompt.tables.items()
    ]
    try:
        with torch.enable_grad():
            found = target_loss(patient.backbone, patient.rows, [prompt] * len(patient.rows))
    finally:
        for hook in hooks:
            hook.remove()
    parameters = dict(prompt.named_parameters())
    tables = {name: out for name, outs in made.items() for out in outs if out.requires_grad}
    gradients = _gradients(found.sum, {**parameters, **{f"table {name}": out for name, out in tables.items()}})
    silent = [f"no gradient reaches {name}" for name in parameters if gradients[name] is None]
    zero = [f"the gradient of {n} is zero" for n in parameters if gradients[n] is not None and not gradients[n].any()]
    fine = f"reaches all {len(parameters)} tensors; loss {found.sum.item() / found.num_tokens:.3f} nats a token"
    if patient.note("gradient", silent + zero, fine):
        patient.note("dead parts", _dead(patient, gradients), "every virtual token, layer and number moves")


def _gradients(loss: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor | None]:
    """Return d loss by each tensor, None where there is none; no `.grad` is touched."""
    wanted = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    if not loss.requires_grad or not wanted:
        return dict.fromkeys(tensors)
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {**dict.fromkeys(tensors), **dict(zip(wanted, found, strict=True))}


def _dead(patient: _Examination, gradients: dict[str, Tensor | None]) -> list[str]:
    """Return what has exactly zero gradient on all texts: virtual tokens, layers, or too many single numbers."""
    faults = []
    for name in patient.prompt.tables:
        gradient = gradients.get(f"table {name}")
        if gradient is None:
            continue
        still = (~gradient.any(1)).nonzero().flatten().tolist()
        if still:
            faults.append(f"virtual tokens {_ranges(still)} of {name} get no gradient; {WINDOW_HINT}")
        dead = _dead_layers(patient, name, gradient)
        faults += [f"{name} at layer {layer} gets no gradient; {WINDOW_HINT}" for layer in dead]
    for name, gradient in gradients.items():
        share = 0.0 if gradient is None else float((gradient == 0).float().mean())
        if share > DEAD_SHARE and not faults:
            faults.append(f"{share:.0%} of the numbers of {name} get no gradient")
    return faults


def _dead_layers(patient: _Examination, table: str, gradient: Tensor) -> list[int]:
    """Return the layers whose columns of a prefix table have zero gradient."""
    prompt, at, dead = patient.prompt, 0, []
    for stack, layer in (site for site in prompt.sites if site[0] == table):  # none for an embedding table
        width = prompt.geometry.sites[stack, layer].width
        if not gradient[:, at : at + width].any():
            dead.append(layer)
        at += width
    return dead


def _ranges(numbers: list[int]) -> str:
    """Return sorted numbers as `0-3, 7`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


@torch.no_grad()
def _target_logits(patient: _Examination, row: Row, prompt: SoftPrompt | None) -> Tensor:
    """Return [T, V] logits that predict a row's one target, from one full forward pass of that row alone."""
    backbone = patient.backbone
    realised = realise_all(backbone, [prompt])
    if backbone.is_encoder_decoder:
        batch = pad(backbone, [row], realised)
        inputs: dict[str, Any] = {**batch.inputs, "decoder_input_ids": pad_targets(backbone, [row])[0]}
    else:
        read = row.targets[0][:-1]
        batch = pad(backbone, [Row(row.source + read, tail=row.tail + len(read))], realised)
        inputs = batch.inputs
    with activate(batch.injection):
        logits = backbone.model(**inputs, use_cache=False).logits[0]
    return logits[-len(row.targets[0]) :].float()


def _check_effect(patient: _Examination) -> None:
    changes, scale = [], 1.0
    for row in patient.rows:
        bare, ours = (_target_logits(patient, row, prompt) for prompt in (None, patient.prompt))
        changes.append((ours - bare).abs().max().item())
        scale = max(scale, bare.abs().max().item())
    noise = 16 * torch.finfo(patient.backbone.dtype).eps * scale
    faults = [] if max(changes) > noise else [f"logits are the bare backbone's (largest change {max(changes):.1e})"]
    patient.note("effect", faults, f"logits change by up to {max(changes):.3g}")


def _check_generation(patient: _Examination) -> None:
    """Each greedy token, made with a cache in one batch, must be the full forward's best up to rounding."""
    prompts = [patient.prompt] * len(patient.rows)
    made = generate_ids(
        patient.backbone, patient.rows, prompts, max_new_tokens=NEW_TOKENS, num_beams=1, do_sample=False
    )
    faults, tokens = [], 0
    for number, (row, ids) in enumerate(zip(patient.rows, made, strict=True)):
        logits = _target_logits(patient, Row(row.source, (tuple(ids),), row.tail), patient.prompt)
        short = logits.amax(1) - logits.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0]
        noise = 64 * torch.finfo(patient.backbone.dtype).eps * max(1.0, logits.abs().max().item())
        wrong = (short > noise).nonzero().flatten().tolist()
        tokens += len(ids)
        if wrong:
            gap = float(short[wrong[0]])
            faults.append(f"text {number}: new token {wrong[0]} is not the full forward's best (logit {gap:.2g} lower)")
    patient.note("generation", faults, f"{tokens} greedy tokens equal the full forward's")


@torch.no_grad()
def _check_norms(patient: _Examination) -> None:
    """Compare norms with those of real tokens: input embeddings, or keys and values at every site."""
    ratios = _embedding_norms(patient) if patient.prompt.spec.kind != "prefix" else _state_norms(patient)
    if not ratios:
        patient.note("norms", ["the prompt injects no keys and values"], "")
        return
    low, high = min(ratios.values()), max(ratios.values())
    faults = [
        f"{what} has {ratio:.3g} times the vocabulary's norm"
        for what, ratio in ratios.items()
        if not NORM_RATIOS[0] <= ratio <= NORM_RATIOS[1]
    ]
    more = [f"and {len(faults) - 3} more"] if len(faults) > 3 else []
    patient.note("norms", faults[:3] + more, f"{low:.3g} to {high:.3g} times the vocabulary's")


def _sample(patient: _Examination, count: int) -> Tensor:
    vocabulary = patient.backbone.model.get_input_embeddings().weight.shape[0]
    ids = torch.randperm(vocabulary, generator=patient.generator)[:count]
    return ids.to(patient.backbone.device)


def _embedding_norms(patient: _Examination) -> dict[str, float]:
    """Return each soft token's norm over the median norm of sampled vocabulary embeddings."""
    usual = patient.backbone.embed(_sample(patient, SAMPLED_TOKENS)).float().norm(dim=-1).median()
    norms = patient.prompt.table("embedding").norm(dim=-1) / usual
    return {f"virtual token {i}": ratio for i, ratio in enumerate(norms.tolist())}


def _state_norms(patient: _Examination) -> dict[str, float]:
    """Return each site's mean key and value norm over that of as many sampled tokens run through the backbone."""
    states = patient.prompt.realise(patient.backbone).prefix.states
    real = patient.backbone.record(ids=_sample(patient, max(16, patient.prompt.length))[:64])
    ratios = {}
    for (stack, layer), pair in states.items():
        for which, ours, theirs in zip(("keys", "values"), pair, real[stack, layer], strict=True):
            usual = theirs.float().norm(dim=-1).median().clamp(min=1e-12)
            for position, norm in enumerate((ours.float().norm(dim=-1).mean(0) / usual).tolist()):
                ratios[f"{stack} layer {layer} {which} of virtual token {position}"] = norm
    return ratios


def _nearest(patient: _Examination) -> tuple[tuple[Neighbour, ...], str]:
    """Return each virtual token's nearest vocabulary tokens by cosine, and what was compared."""
    space = token_space(patient.prompt, patient.backbone)
    if space is None:
        return (), "not applicable: the prefix is not at layer 0, where keys and values stand for single tokens"
    return _closest(patient.backbone, space.ours, space.table), f"cosine of {space.of}"


def _closest(backbone: Backbone, ours: Tensor, table: Tensor) -> tuple[Neighbour, ...]:
    cosines = torch.nn.functional.normalize(ours, dim=-1) @ torch.nn.functional.normalize(table, dim=-1).T
    best = cosines.topk(min(NEAREST, table.shape[0]), dim=-1)
    rows = list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
    named = [[(backbone.tokenizer.decode([i]), round(c, 4)) for i, c in zip(*row, strict=True)] for row in rows]
    return tuple(Neighbour(position, tuple(tokens)) for position, tokens in enumerate(named))
