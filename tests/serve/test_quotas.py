"""Quotas are limits: tokens that were made are counted, and so is every byte, of forewords and files together."""

import pytest
from backbones import make
from fake_engine import FakeEngine, FakePool
from http_kit import PLAIN, save, serving

from foreword.artifact.directory import FILES
from foreword.serve.capacity import Capacity
from foreword.serve.catalog import tree_bytes
from foreword.serve.faults import ApiError
from foreword.serve.limits import Limits
from foreword.serve.request import Request
from foreword.serve.tenants import Keyring, Quota, Tenant


@pytest.fixture(scope="module")
def backbone():
    return make("llama")


def test_tokens_over_the_allowance_are_owed():
    now = [0.0]
    limits, tenant = Limits(lambda: now[0]), Tenant("ann", quota=Quota(tokens_per_min=600))
    over = limits.admit(tenant, 1, 100)
    over.used_tokens = 900
    over.close()  # 300 are owed: 30 s at 10 a second
    with pytest.raises(ApiError) as caught:
        limits.admit(tenant, 1, 100)
    assert caught.value.status == 429 and caught.value.headers["Retry-After"] == "40"
    assert "may use 100" in str(caught.value) and "max_tokens" in str(caught.value)
    now[0] = 40.0
    limits.admit(tenant, 1, 100)


def test_no_more_tokens_than_the_allowance_and_one_request_are_made_in_a_minute():
    limits, tenant = Limits(lambda: 0.0), Tenant("ann", quota=Quota(tokens_per_min=1000))
    made = 0
    with pytest.raises(ApiError, match="tokens a minute"):
        for _ in range(20):
            admission = limits.admit(tenant, 1, 261)
            admission.used_tokens = 4101
            admission.close()
            made += admission.used_tokens
    assert made == 4101


def test_without_max_tokens_the_engine_s_own_limit_is_held_and_texts_are_counted_in_tokens(backbone, tmp_path):
    tenant = Tenant("ann", quota=Quota(tokens_per_min=10_000))
    for new_tokens, most in ((50, 50), (4096, min(4096, backbone.geometry.max_positions))):
        engine = FakeEngine(backbone, capacity=Capacity(new_tokens=new_tokens))
        limits = Limits(lambda: 0.0)
        with serving(backbone, tmp_path, engine, FakePool(), limits=limits) as running:
            spent = 0
            for request, tokens in (
                (Request("a" * 400, max_tokens=None, n=3), 400 + 3 * most),  # one token a letter, not four
                (Request("abc", max_tokens=7, n=2), 3 + 14),
                (Request((40, 41), max_tokens=None), 2 + most),
            ):
                admission, tickets = running.service.submit(tenant, [request])
                bucket = limits._uses["ann"].tokens
                assert admission.reserved_tokens == tokens and bucket.level == 10_000 - spent - tokens
                running.service.finish(admission, tickets)
                spent += admission.used_tokens
                assert bucket.level == 10_000 - spent


def test_a_chat_without_max_tokens_cannot_slip_past_the_allowance(backbone, tmp_path):
    """Two at once, of which each may make 400 tokens, do not fit into 600."""
    key = Keyring(tmp_path).add("ann", quota=Quota(tokens_per_min=600))
    engine = FakeEngine(backbone, capacity=Capacity(new_tokens=400), token_sec=0.1)
    chat = {"model": PLAIN, "messages": [{"role": "user", "content": "abc"}]}
    with (serving(backbone, tmp_path, engine, FakePool()) as running, running.client(key) as http,
          running.client(key) as other,
          http.stream("POST", "/v1/chat/completions", json=chat | {"stream": True}) as first):
        assert first.status_code == 200
        refused = other.post("/v1/chat/completions", json=chat)
        assert refused.status_code == 429 and "tokens a minute" in refused.json()["error"]["message"]
        assert other.post("/v1/chat/completions", json=chat | {"max_tokens": 1}).status_code == 200


# ---- bytes ----
def forms(path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (name, (path / name).read_bytes())) for name in FILES if (path / name).is_file()]


def put(http, size: int):
    return http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", b"x" * size)})


def test_a_file_s_own_size_counts_before_it_is_taken(backbone, tmp_path):
    key = Keyring(tmp_path).add("ann", quota=Quota(store_bytes=2000))
    with serving(backbone, tmp_path, FakeEngine(backbone), FakePool()) as running, running.client(key) as http:
        refused = put(http, 2001)
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "quota_exceeded"
        assert "2,001 bytes" in refused.json()["error"]["message"] and "allows 2,000" in refused.text
        assert http.get("/v1/files").json()["data"] == []
        assert put(http, 1500).status_code == 200
        assert put(http, 600).status_code == 403
        assert put(http, 100).status_code == 200
    assert tree_bytes(tmp_path / ".files" / "ann") <= 2000


def test_forewords_and_files_share_one_allowance(backbone, tmp_path):
    artefact = save(backbone, tmp_path / "made")
    size, store = tree_bytes(artefact), tmp_path / "store"
    ring = Keyring(store)
    keys = [ring.add(name, quota=Quota(store_bytes=size + 1000)) for name in ("ann", "bob")]
    with serving(backbone, store, FakeEngine(backbone), FakePool()) as running:
        with running.client(keys[0]) as ann:
            assert ann.post("/v1/forewords", data={"name": "one"}, files=forms(artefact)).status_code == 201
            assert put(ann, 1100).status_code == 403
            assert put(ann, 500).status_code == 200
        with running.client(keys[1]) as bob:
            assert put(bob, 1100).status_code == 200
            refused = bob.post("/v1/forewords", data={"name": "one"}, files=forms(artefact))
            assert refused.status_code == 403 and "forewords and files" in refused.json()["error"]["message"]
            assert bob.get("/v1/forewords").json()["data"] == []
            file_id = bob.get("/v1/files").json()["data"][0]["id"]
            assert bob.delete(f"/v1/files/{file_id}").status_code == 200
            assert bob.post("/v1/forewords", data={"name": "one"}, files=forms(artefact)).status_code == 201
