"""What the connector decides, without vLLM: which positions to load, what to refuse, which heads a rank holds."""

import pytest
import torch
from stub_vllm import asked

from foreword.engines.prefix_files import pack_prefix, salt_of, write_prefix
from foreword.engines.prefix_memory import LayerPlace, PrefixMemory, head_range
from foreword.engines.prefix_plan import Load, Planner
from foreword.errors import ArtifactError

PAD, P = 9, 40


def states(heads=4, length=P, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(length, heads, 8, generator=draw) for _ in "kv") for _ in range(2)]


@pytest.fixture
def shelf(tmp_path):
    file, content = pack_prefix(states(), PAD, False)
    write_prefix(tmp_path, file, content)
    return tmp_path, file


def good(file, **fields):
    return asked(ids=[PAD] * P + [1, 2, 3], salt=salt_of(file.digest, "a1"), **fields)


def test_the_whole_prefix_is_claimed_and_loaded(shelf):
    folder, file = shelf
    planner = Planner(folder)
    assert planner.claim(good(file), 0).tokens == P
    planner.allocated(good(file), [5, 3], P)
    plan = planner.take()
    assert plan.loads == [Load(file.digest, 0, P, (5, 3))] and not plan.refused
    assert not planner.take().loads


def test_what_vllm_has_cached_is_not_loaded_again(shelf):
    folder, file = shelf
    planner = Planner(folder)
    assert planner.claim(good(file), 32).tokens == P - 32
    planner.allocated(good(file), [5, 3], P - 32)
    (load,) = planner.take().loads
    assert (load.start, load.end) == (32, P) and load.written_blocks(32) == {3}
    assert load.slots(32) == list(range(3 * 32, 3 * 32 + P - 32))
    assert planner.claim(good(file), 64).tokens == 0
    planner.allocated(good(file), [5, 3], 0)
    assert not planner.take().loads


def test_a_request_without_a_prefix_is_left_alone(shelf):
    planner = Planner(shelf[0])
    for salt in (None, "someone's own"):
        claim = planner.claim(asked(ids=[1, 2, 3], salt=salt), 0)
        assert (claim.tokens, claim.why_not) == (0, None)


@pytest.mark.parametrize(("change", "why"), [
    ({"salt": salt_of("0" * 64)}, "not in the prefix directory"),
    ({"salt": "pfx:../../etc/passwd"}, "cache_salt"),
    ({"ids": [PAD] * P}, "at least one token"),
    ({"ids": [PAD] * (P - 1) + [1, 2]}, "placeholder"),
    ({"ids": None}, "at least one token"),
    ({"prompt_logprobs": 0}, "prompt_logprobs"),
    ({"pooling": True}, "pooling"),
])
def test_what_cannot_be_served_claims_its_whole_prompt_and_is_refused(shelf, change, why):
    folder, file = shelf
    planner = Planner(folder)
    request = asked(**{"ids": [PAD] * P + [1, 2], "salt": salt_of(file.digest), **change})
    claim = planner.claim(request, 32)
    assert why in claim.why_not and claim.tokens == request.num_tokens - 32
    planner.allocated(request, [1, 2], claim.tokens)
    plan = planner.take()
    assert plan.refused == ["r1"] and not plan.loads


def test_no_exception_leaves_the_planner(shelf):
    class Odd:
        request_id, num_tokens = "r9", 3

        @property
        def cache_salt(self):
            raise RuntimeError("not thought of")

    assert "not thought of" in Planner(shelf[0]).claim(Odd(), 0).why_not


def test_a_request_resumed_after_preemption_is_loaded_again(shelf):
    folder, file = shelf
    planner = Planner(folder)
    for blocks in ([1, 2], [7, 8]):
        planner.claim(good(file), 0)
        planner.allocated(good(file), blocks, P)
        assert planner.take().loads[0].block_ids == tuple(blocks)
    planner.forget("r1")


def test_a_prefix_that_arrives_later_is_found(tmp_path):
    file, content = pack_prefix(states(), PAD, False)
    planner = Planner(tmp_path)
    assert planner.claim(good(file), 0).why_not
    write_prefix(tmp_path, file, content)
    assert planner.claim(good(file), 0).why_not is None


@pytest.mark.parametrize(("heads", "ranks", "expected"), [
    (4, 1, [range(0, 4)]), (4, 2, [range(0, 2), range(2, 4)]), (2, 4, [range(0, 1)] * 2 + [range(1, 2)] * 2),
    (1, 2, [range(0, 1)] * 2),
])
def test_each_rank_holds_its_heads(heads, ranks, expected):
    assert [head_range(heads, rank, ranks) for rank in range(ranks)] == expected


def places(heads, dtype=torch.float32):
    return {number: LayerPlace(heads, 8, 8, torch.device("cpu"), dtype) for number in range(2)}


def test_ranks_together_hold_the_whole_prefix(shelf):
    folder, file = shelf
    parts = [PrefixMemory(folder, 1 << 20, rank, 2).get(file.digest, places(2)) for rank in range(2)]
    for number, whole in enumerate(states()):
        for part in (0, 1):
            joined = torch.cat([held[number][part] for held in parts], 1)
            assert torch.equal(joined, whole[part])


def test_memory_keeps_to_its_budget_and_drops_the_least_recently_used(tmp_path):
    files = []
    for seed in range(3):
        file, content = pack_prefix(states(seed=seed), PAD, False)
        write_prefix(tmp_path, file, content)
        files.append(file.digest)
    memory = PrefixMemory(tmp_path, 2 * 4 * P * 4 * 8 * 4)  # two of them
    for digest in (files[0], files[1], files[0], files[2]):
        memory.get(digest, places(4))
    assert len(memory) == 2
    (tmp_path / f"{files[0]}.safetensors").unlink()
    memory.get(files[0], places(4))  # still there
    with pytest.raises(ArtifactError):
        (tmp_path / f"{files[1]}.safetensors").unlink()
        memory.get(files[1], places(4))


@pytest.mark.parametrize("wrong", [places(2), {5: places(4)[0]}, {}])
def test_a_prefix_of_another_model_is_refused(shelf, wrong):
    folder, file = shelf
    with pytest.raises(ArtifactError, match="export it for this model"):
        PrefixMemory(folder, 1 << 20).get(file.digest, wrong)


def test_memory_holds_the_caches_own_dtype(shelf):
    folder, file = shelf
    made = PrefixMemory(folder, 1 << 20).get(file.digest, places(4, torch.bfloat16))
    assert made[0][0].dtype == torch.bfloat16 and made[1][1].is_contiguous()
