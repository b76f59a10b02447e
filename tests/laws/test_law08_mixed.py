"""Law 8: a mixed batch of N prompts equals N single runs, token for token; neighbours change nothing."""

import threading

import pytest
import torch
from lawbook import FAMILIES, all_prompts, difference, drawn, padded_logits, random_rows, row_logits, specs

from foreword.generate.offline import generate_ids
from foreword.prompts.batch import realise_all
from foreword.prompts.inject import activate
from foreword.prompts.padded import pad
from foreword.prompts.spec import PromptSpec

GREEDY = {"max_new_tokens": 6, "num_beams": 1, "do_sample": False}
BEAM = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False}
STATIC = {**GREEDY, "cache_implementation": "static"}


def batch_of(backbone, name, seed=0):
    """Return rows of different lengths with at least eight different prompts, None, and one prompt used twice."""
    prompts = list(all_prompts(backbone, name).values())
    prompts += [prompts[0], None]
    assert len({id(p) for p in prompts if p is not None}) >= 8
    return random_rows([3 + 7 * (i * 5 % 9) for i in range(len(prompts))], seed, targets=(7, 3)), prompts


def singles(backbone, rows, prompts, **options):
    return [generate_ids(backbone, [row], [p], **options)[0] for row, p in zip(rows, prompts, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_of_a_mixed_batch_are_those_of_single_rows(name, backbone_of, measure):
    """Every kind of prompt, sources shared by two targets, through training's path and the padded one."""
    backbone = backbone_of(name)
    rows, prompts = batch_of(backbone, name)
    with torch.no_grad():
        for path in (row_logits, padded_logits):
            rows_here = rows if path is row_logits and not backbone.is_encoder_decoder else random_rows(
                [len(row.source) for row in rows], 3, targets=(7,)
            )
            together = path(backbone, rows_here, prompts)
            for row, prompt, ours in zip(rows_here, prompts, together, strict=True):
                measure("8 mixed logits", name, difference(ours, path(backbone, [row], [prompt])[0]))


@pytest.mark.parametrize("options", [GREEDY, BEAM, STATIC], ids=["greedy", "beam", "static"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_batch_generates_what_single_runs_do(name, options, backbone_of):
    backbone = backbone_of(name)
    rows, prompts = batch_of(backbone, name, seed=1)
    together = generate_ids(backbone, rows, prompts, **options)
    assert together == singles(backbone, rows, prompts, **options)
    assert len({tuple(ids) for ids in together}) > len(together) // 3, "the prompts should steer to different texts"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_neighbour_changes_nothing(name, backbone_of):
    """Rows removed one after another, and replaced by a long prompt: the others' texts stay."""
    backbone = backbone_of(name)
    rows, prompts = batch_of(backbone, name, seed=2)
    rows, prompts = rows[:6], prompts[:6]
    whole = generate_ids(backbone, rows, prompts, **GREEDY)
    for gone in range(len(rows)):
        kept = [i for i in range(len(rows)) if i != gone]
        left = generate_ids(backbone, [rows[i] for i in kept], [prompts[i] for i in kept], **GREEDY)
        assert left == [whole[i] for i in kept]
    long = drawn(backbone, PromptSpec(length=200), seed=9)
    with_long = generate_ids(backbone, [*rows, rows[0]], [*prompts, long], **GREEDY)
    assert with_long[:-1] == whole
    with_none = generate_ids(backbone, [rows[0], rows[1]], [long, None], **GREEDY)
    assert with_none == [with_long[-1], *singles(backbone, rows[1:2], [None], **GREEDY)]


@pytest.mark.parametrize("name", FAMILIES)
def test_return_sequences_and_sampling_stay_with_their_row(name, backbone_of):
    """Sampling is a function of logits and the generator: a batch gives the same text twice, another with no prompt.

    With top_k = 1 sampling can only take the greedy token, so several samples a row must equal single greedy runs.
    """
    backbone = backbone_of(name)
    rows, prompts = batch_of(backbone, name, seed=3)
    options = {"max_new_tokens": 5, "do_sample": True, "num_beams": 1}
    first = generate_ids(backbone, rows, prompts, **options, seed=3, temperature=1.3)
    assert first == generate_ids(backbone, rows, prompts, **options, seed=3, temperature=1.3)
    assert first != generate_ids(backbone, rows, prompts, **options, seed=4, temperature=1.3)
    greedy = singles(backbone, rows, prompts, **{**GREEDY, "max_new_tokens": 5, "eos_token_id": -1})
    batch = pad(backbone, rows, realise_all(backbone, prompts), new_len=5)
    with torch.no_grad(), activate(batch.injection):
        out = backbone.model.generate(
            **batch.inputs, max_new_tokens=5, do_sample=True, top_k=1, num_return_sequences=3, eos_token_id=-1,
            pad_token_id=0,
        )
    assert out[:, -5:].tolist() == [ids for ids in greedy for _ in range(3)]


@pytest.mark.parametrize("name", FAMILIES)
def test_threads_do_not_see_each_other(name, backbone_of):
    """Three threads generate with different prompts on one model, each several times; one has none."""
    backbone = backbone_of(name)
    kinds = list(specs(name))
    prompts = [drawn(backbone, specs(name)[kinds[0]], 1), drawn(backbone, specs(name)[kinds[1]], 2), None]
    rows = random_rows([9, 14], 5)
    alone = [generate_ids(backbone, rows, [prompt] * 2, **GREEDY) for prompt in prompts]
    assert len({str(ids) for ids in alone}) == 3
    gate, made = threading.Barrier(3), {i: [] for i in range(3)}

    def work(number):
        gate.wait()
        for _ in range(3):
            made[number].append(generate_ids(backbone, rows, [prompts[number]] * 2, **GREEDY))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(made[i] == [alone[i]] * 3 for i in range(3))


def test_activation_ends_with_its_block_even_after_an_error(backbone_of):
    backbone = backbone_of("llama")
    rows = random_rows([5])
    bare = generate_ids(backbone, rows, [None], **GREEDY)
    batch = pad(backbone, rows, realise_all(backbone, [drawn(backbone, PromptSpec(length=4))]))
    with pytest.raises(ZeroDivisionError), activate(batch.injection):
        _ = 1 / 0
    assert generate_ids(backbone, rows, [None], **GREEDY) == bare
