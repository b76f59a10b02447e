"""The pool: a budget kept, versions by content, loads that fail without harm, and nothing leaked."""

import shutil
import threading
import time

import pytest
import torch
from serving import drawn, saved

from foreword.errors import ArtifactError, ForewordError, PromptError
from foreword.prompts.soft_prompt import compile_prompt
from foreword.prompts.spec import PromptSpec
from foreword.serve.pool import Pool
from foreword.serve.request import UnknownForeword


@pytest.fixture
def gpt2(backbone_of):
    return backbone_of("gpt2")


@pytest.fixture
def store(gpt2, tmp_path):
    """Six prefixes of one size on the disk."""
    return saved({f"p{n}": drawn(gpt2, PromptSpec(length=10), n) for n in range(6)}, gpt2, tmp_path / "store")


@pytest.fixture
def pool_of(gpt2, request):
    """Return a function that makes a pool, closed after the test."""

    def make(budget_bytes: int = 1 << 20, **options: int) -> Pool:
        pool = Pool(gpt2, budget_bytes, **options)
        request.addfinalizer(pool.close)
        return pool

    return make


def lease(pool, name, seconds=20.0):
    """Acquire a foreword, waiting for its load."""
    end = time.monotonic() + seconds
    while (got := pool.acquire(name)) is None:
        assert time.monotonic() < end, f"{name} was not loaded"
        time.sleep(0.002)
    return got


SIZE = 10 * 3 * 2 * 64 * 4  # virtual tokens, layers, key and value, width, float32


def test_facts_are_told_before_anything_is_loaded(pool_of, store, gpt2):
    pool = pool_of()
    info = pool.register("p0", store["p0"])
    assert (info.kind, info.length, info.num_bytes, info.state, info.rows) == ("prefix", 10, SIZE, "cold", 0)
    held = lease(pool, "p0")
    assert held.version == info.version and pool.info("p0").state == "resident" and pool.info("p0").rows == 1
    assert pool.stats().resident_bytes == SIZE == held.prompt.prefix.num_bytes
    wanted = compile_prompt(drawn(gpt2, PromptSpec(length=10), 0), gpt2)
    for site, (key, value) in wanted.states.items():
        assert torch.equal(held.prompt.prefix.states[site][0], key)
        assert torch.equal(held.prompt.prefix.states[site][1], value)


@pytest.mark.parametrize("form", [
    {"kind": "prompt"}, {"kind": "prompt", "placement": "after_bos"}, {"kind": "prompt", "placement": "suffix"},
    {"kind": "infix"}, {"layers": (1,)}, {"reparam": "mlp", "reparam_width": 8},
])
def test_bytes_told_are_bytes_taken(pool_of, gpt2, tmp_path, form):
    pool = pool_of()
    path = saved({"x": drawn(gpt2, PromptSpec(length=7, **form), 0)}, gpt2, tmp_path)["x"]
    told = pool.register("x", path).num_bytes
    lease(pool, "x")
    assert pool.stats().resident_bytes == told


def test_the_least_recently_used_goes_and_the_budget_holds(pool_of, store):
    pool = pool_of(3 * SIZE)
    for name, path in store.items():
        pool.register(name, path, check=False)
    for name in ("p0", "p1", "p2", "p0", "p3"):
        pool.release(lease(pool, name))
        assert pool.stats().resident_bytes <= 3 * SIZE
    states = {name: pool.info(name).state for name in store}
    assert [name for name, state in states.items() if state == "resident"] == ["p0", "p2", "p3"]
    stats = pool.stats()
    assert (stats.evictions, stats.loads, stats.misses, stats.names) == (1, 4, 4, 6)


def test_forewords_in_use_and_pinned_ones_stay(pool_of, store):
    pool = pool_of(2 * SIZE)
    for name in ("p0", "p1", "p2"):
        pool.register(name, store[name], pinned=name == "p0")
    held = lease(pool, "p1")
    for _ in range(20):
        assert pool.acquire("p2") is None  # the one place is taken; whoever waits asks again
        time.sleep(0.002)
    pool.release(held)
    lease(pool, "p2")
    assert pool.info("p0").state == "resident" and pool.info("p1").state == "cold"


def test_waiting_for_room_that_pinned_forewords_hold_is_an_error(pool_of, store):
    pool = pool_of(SIZE)
    pool.register("p0", store["p0"], pinned=True)
    pool.release(lease(pool, "p0"))
    pool.register("p1", store["p1"])
    with pytest.raises(PromptError, match="unpin"):
        lease(pool, "p1", seconds=3)


def test_a_swap_leaves_the_version_that_runs_and_takes_its_memory_back_after(pool_of, store):
    pool = pool_of()
    old = pool.register("name", store["p0"]).version
    running = lease(pool, "name")
    new = pool.register("name", store["p1"]).version
    fresh = lease(pool, "name")
    assert running.version == old != new == fresh.version
    assert pool.stats().resident == 2
    pool.release(running)
    assert pool.stats().resident == 1
    pool.unregister("name")
    assert pool.stats().resident == 1  # a row still runs with it
    pool.release(fresh)
    assert pool.stats().resident == pool.stats().resident_bytes == 0


def test_names_with_one_content_share_it(pool_of, store):
    pool = pool_of()
    for name in ("a", "b"):
        pool.register(name, store["p0"])
    one, two = lease(pool, "a"), lease(pool, "b")
    assert one.prompt is two.prompt and pool.stats().resident == 1
    pool.unregister("a")
    pool.release(one)
    pool.release(two)
    assert pool.stats().resident == 1  # `b` still points to it


def test_what_is_too_large_or_another_s_is_refused_at_once(pool_of, store, gpt2, backbone_of, tmp_path):
    with pytest.raises(PromptError, match="10 virtual tokens, this server takes 8"):
        pool_of(longest=8).register("x", store["p0"])
    with pytest.raises(PromptError, match="budget"):
        pool_of(SIZE - 1).register("x", store["p0"])
    foreign = saved({"f": drawn(backbone_of("llama"), PromptSpec(length=3), 0)}, backbone_of("llama"), tmp_path)["f"]
    with pytest.raises(PromptError, match="does not fit"):
        pool_of().register("x", foreign)
    with pytest.raises(ArtifactError):
        pool_of().register("x", tmp_path / "nothing")
    with pytest.raises(UnknownForeword, match="did you mean 'tone'"):
        pool = pool_of()
        pool.register("tone", store["p0"])
        pool.info("tome")


def test_a_file_that_vanishes_or_is_cut_fails_alone_and_is_tried_again(pool_of, store, monkeypatch):
    monkeypatch.setattr("foreword.serve.pool.REMEMBERED_SEC", 0.1)
    pool = pool_of()
    for name in ("p0", "p1"):
        pool.register(name, store[name])
    kept = store["p0"].with_name("kept")
    shutil.copytree(store["p0"], kept)
    shutil.rmtree(store["p0"])
    weights = store["p1"] / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    for name in ("p0", "p1"):
        with pytest.raises(ForewordError):
            lease(pool, name)
    assert pool.stats().failures >= 2 and pool.stats().resident == 0
    kept.rename(store["p0"])
    time.sleep(0.15)
    assert lease(pool, "p0").version


def test_a_load_that_fails_while_facts_are_told_does_not_take_them_away(pool_of, store, monkeypatch):
    pool = pool_of()
    known = pool.register("p0", store["p0"])
    find = pool._find

    def settle(name):  # between two looks
        entry = find(name)
        real = pool._lock

        class Lock:
            def __enter__(self):
                pool._lock = real
                pool._settle(entry, None, ArtifactError("gone"))
                return real.__enter__()

            def __exit__(self, *error):
                return real.__exit__(*error)

        pool._lock = Lock()
        return entry

    monkeypatch.setattr(pool, "_find", settle)
    told = pool.info("p0")
    assert (told.version, told.state) == (known.version, "failed")


def test_a_manifest_that_promises_other_sizes_is_refused_before_tensors_are_read(pool_of, store):
    manifest = store["p0"] / "foreword.json"
    manifest.write_text(manifest.read_text().replace('"length": 10', '"length": 9'))
    with pytest.raises(ArtifactError, match="numbers"):
        pool_of().register("x", store["p0"])


def test_many_threads_neither_leak_nor_exceed_the_budget(pool_of, store):
    pool, over = pool_of(3 * SIZE, loaders=2), []
    for name, path in store.items():
        pool.register(name, path)

    def use(seed: int) -> None:
        for turn in range(30):
            held = lease(pool, f"p{(seed * 7 + turn * 3) % 6}")
            over.append(pool.stats().resident_bytes > 3 * SIZE)
            pool.release(held)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(over) == 60 and not any(over)
    assert all(pool.info(name).rows == 0 for name in store)
