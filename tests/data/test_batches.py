import itertools

import numpy as np
import pytest
import torch

from foreword.data.batches import IGNORE, BatchConfig, BatchSampler, collate, share_sources
from foreword.data.examples import Example
from foreword.errors import ConfigError, DataError, TrainingError

CONFIGS = [
    BatchConfig(rows=4),
    BatchConfig(rows=4, window=3),
    BatchConfig(rows=4, per_source=2),
    BatchConfig(tokens=120),
    BatchConfig(tokens=120, window=4),
    BatchConfig(tokens=120, window=4, per_source=0),
    BatchConfig(rows=5, shuffle=False),
]


def examples(n=57, seed=0):
    """Return rows in which some twelve sources have one to many targets, of many lengths."""
    rng = np.random.default_rng(seed)
    sources = [tuple(range(100 * k, 100 * k + rng.integers(2, 20))) for k in range(12)]
    return [Example(sources[rng.integers(12)], tuple([7] * rng.integers(1, 20)) + (2,), str(i)) for i in range(n)]


def epoch(sampler):
    return list(sampler)


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_row_is_lost_or_repeated_and_ranks_step_together(config, world):
    rows = examples()
    ranks = [BatchSampler.of(rows, config, seed=3, rank=r, world=world) for r in range(world)]
    for _ in range(2):
        batches = [epoch(sampler) for sampler in ranks]
        assert len({len(b) for b in batches}) == 1
        assert all(batch for rank in batches for batch in rank)
        assert sorted(itertools.chain(*itertools.chain(*batches))) == list(range(len(rows)))


@pytest.mark.parametrize("n", range(1, 24))
def test_every_size_works_for_two_ranks_or_says_why(n):
    rows = examples(n)
    if n < 2:
        with pytest.raises(DataError, match="use fewer processes"):
            epoch(BatchSampler.of(rows, BatchConfig(rows=4), world=2))
        return
    parts = [epoch(BatchSampler.of(rows, BatchConfig(rows=4), rank=r, world=2)) for r in (0, 1)]
    assert sorted(itertools.chain(*parts[0], *parts[1])) == list(range(n))


def test_two_ranks_see_the_batches_of_one_process():
    rows = examples()
    one = epoch(BatchSampler.of(rows, BatchConfig(rows=8), seed=1))
    two = [epoch(BatchSampler.of(rows, BatchConfig(rows=8), seed=1, rank=r, world=2)) for r in (0, 1)]
    assert one == [a + b for a, b in zip(*two, strict=True)]


def test_fixed_rows_are_fixed_but_for_an_even_tail():
    sizes = [len(batch) for batch in epoch(BatchSampler.of(examples(41), BatchConfig(rows=10)))]
    assert sizes == [10, 10, 10, 6, 5]


@pytest.mark.parametrize("config", [c for c in CONFIGS if c.tokens], ids=str)
def test_the_token_budget_holds(config):
    rows = examples()
    for batch in epoch(BatchSampler.of(rows, config)):
        chosen = [rows[i] for i in batch]
        if config.per_source is None:
            positions = len(chosen) * max(map(len, chosen))
        else:
            widest = max(len(e.source_ids) for e in chosen)
            targets = max(len(e.target_ids) for e in chosen)
            positions = len({e.source_ids for e in chosen}) * widest + len(chosen) * targets
        assert positions <= config.tokens


def test_a_row_over_the_budget_is_an_error():
    with pytest.raises(DataError, match=r"row 1 has 9 tokens but a batch may have 8"):
        BatchSampler.of([Example((1,), (2,)), Example((1,) * 5, (2,) * 4)], BatchConfig(tokens=8))


def test_sorting_in_windows_saves_padding():
    rows = examples(400)

    def padding(config):
        batches = epoch(BatchSampler.of(rows, config))
        return sum(len(b) * max(len(rows[i]) for i in b) for b in batches) - sum(map(len, rows))

    assert padding(BatchConfig(rows=8, window=16)) < 0.4 * padding(BatchConfig(rows=8))


def test_sources_are_kept_together():
    rows = examples(200)

    def runs(config):
        return sum(len(share_sources([rows[i] for i in b])) for b in epoch(BatchSampler.of(rows, config)))

    assert runs(BatchConfig(rows=10, per_source=0)) < 40 < runs(BatchConfig(rows=10, per_source=4)) < 90
    assert runs(BatchConfig(rows=10)) > 150


def test_share_sources_finds_neighbours_only():
    a, b = Example((1,), (2,)), Example((3,), (2,))
    assert share_sources([a, a, b, a]) == [[0, 1], [2], [3]]
    assert share_sources([]) == []


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_run_resumes_at_any_batch_of_any_epoch(config):
    rows = examples()
    stream = []
    sampler = BatchSampler.of(rows, config, seed=5)
    states = [sampler.state_dict()]
    for _ in range(3):
        for batch in sampler:
            stream.append(batch)
            states.append(sampler.state_dict())
    for done in range(0, len(stream), 3):
        resumed = BatchSampler.of(rows, config, seed=5)
        resumed.load_state_dict(states[done])
        rest = [batch for _ in range(4) for batch in resumed]
        assert rest[: len(stream) - done] == stream[done:]


def test_epochs_and_seeds_differ_and_are_repeatable():
    rows = examples()
    first, again = (BatchSampler.of(rows, BatchConfig(rows=4), seed=1) for _ in range(2))
    assert first.plan(0) == again.plan(0) != first.plan(1)
    assert first.plan(0) == again.plan(0) != BatchSampler.of(rows, BatchConfig(rows=4), seed=2).plan(0)
    assert len(first) == len(first.plan(0))


@pytest.mark.parametrize("change", [{"seed": 9}, {"rows": 3}, {"config": BatchConfig(rows=5)}])
def test_a_state_of_other_batches_is_refused(change):
    rows = examples()
    state = BatchSampler.of(rows, BatchConfig(rows=4)).state_dict()
    other = BatchSampler.of(
        rows[: change.get("rows")], change.get("config", BatchConfig(rows=4)), seed=change.get("seed", 0)
    )
    with pytest.raises(TrainingError, match="in the saved run"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    "fields", [{}, {"rows": 1, "tokens": 1}, {"rows": 0}, {"rows": 2, "window": 0}, {"rows": 2, "per_source": -1}]
)
def test_bad_settings_are_errors(fields):
    with pytest.raises(ConfigError):
        BatchConfig(**fields)


def test_bad_ranks_and_empty_data_are_errors():
    with pytest.raises(ConfigError, match="rank"):
        BatchSampler.of(examples(), BatchConfig(rows=2), rank=2, world=2)
    with pytest.raises(DataError, match="no example"):
        BatchSampler.of([], BatchConfig(rows=2))


ROWS = [Example((1, 2, 3), (4, 9)), Example((5,), (6, 7, 8, 9)), Example((5,), (9,))]


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_for_a_decoder(side):
    batch = collate(ROWS, pad_id=0, side=side)
    assert {tuple(t.shape) for t in batch.values()} == {(3, 5)}
    assert {t.dtype for t in batch.values()} == {torch.int64}
    for row, example in enumerate(ROWS):
        real = batch["attention_mask"][row].bool()
        assert batch["input_ids"][row][real].tolist() == list(example.source_ids + example.target_ids)
        assert batch["labels"][row][real].tolist() == [IGNORE] * len(example.source_ids) + list(example.target_ids)
        assert set(batch["input_ids"][row][~real].tolist()) <= {0}
        assert set(batch["labels"][row][~real].tolist()) <= {IGNORE}
        assert real.tolist() == sorted(real.tolist(), reverse=side == "right")


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate_for_an_encoder_decoder(side):
    batch = collate(ROWS, pad_id=0, side=side, is_encoder_decoder=True)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, 3)
    assert batch["input_ids"][1].tolist() == ([0, 0, 5] if side == "left" else [5, 0, 0])
    assert batch["labels"].tolist() == [[4, 9, IGNORE, IGNORE], [6, 7, 8, 9], [9, IGNORE, IGNORE, IGNORE]]


def test_collate_rejects_an_unknown_side():
    with pytest.raises(ConfigError, match="middle"):
        collate(ROWS, 0, "middle")
