"""Two servers over one store: what one stores the other serves, and a batch is worked on by one of them at a time."""

import json
import os
import time

import pytest
from backbones import make
from fake_engine import FakeEngine
from http_kit import PLAIN, save, serving, wait_for

from foreword.artifact.directory import FILES
from foreword.serve import batches
from foreword.serve.claims import claim
from foreword.serve.store_api import sweep

LINES = 30


@pytest.fixture(scope="module")
def backbone():
    return make("llama")


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(batches, "LOOK_SEC", 0.05)
    monkeypatch.setattr(batches, "ADOPT_SEC", 0.2)


def begin(client) -> str:
    """Start a batch of `LINES` lines and return its id."""
    body = {"model": PLAIN, "prompt": "x", "max_tokens": 4}
    rows = [{"custom_id": f"c{i}", "method": "POST", "url": "/v1/completions", "body": body} for i in range(LINES)]
    file = {"file": ("in.jsonl", "\n".join(map(json.dumps, rows)).encode())}
    file_id = client.post("/v1/files", files=file, data={"purpose": "batch"}).json()["id"]
    asked = {"input_file_id": file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
    return client.post("/v1/batches", json=asked).json()["id"]


def state(client, batch_id) -> dict:
    return client.get(f"/v1/batches/{batch_id}").json()


def answered(client, batch_id) -> list[str]:
    text = client.get(f"/v1/files/{state(client, batch_id)['output_file_id']}/content").text
    return sorted(json.loads(line)["custom_id"] for line in text.splitlines())


def test_what_one_server_stores_or_deletes_counts_at_the_other(backbone, tmp_path):
    path = save(backbone, tmp_path / "made", seed=3)
    files = [("files", (name, (path / name).read_bytes())) for name in FILES if (path / name).is_file()]
    with (serving(backbone, tmp_path / "store", FakeEngine(backbone)) as one,
          serving(backbone, tmp_path / "store", FakeEngine(backbone)) as two,
          one.client() as here, two.client() as there):
        body = {"model": "new", "prompt": "x", "max_tokens": 2}
        assert there.post("/v1/completions", json=body).status_code == 404
        assert here.post("/v1/forewords", data={"name": "new"}, files=files).status_code == 201
        assert there.post("/v1/completions", json=body).status_code == 200
        assert there.delete("/v1/forewords/new").status_code == 200
        assert here.post("/v1/completions", json=body).status_code == 404


def test_a_server_that_starts_leaves_a_batch_to_the_one_that_works_on_it(backbone, tmp_path):
    first, second = FakeEngine(backbone, token_sec=0.03), FakeEngine(backbone)
    with serving(backbone, tmp_path, first) as one, one.client() as here:
        batch_id = begin(here)
        wait_for(lambda: first.made)
        with serving(backbone, tmp_path, second) as two, two.client() as there:
            wait_for(lambda: state(there, batch_id)["status"] == "completed", 30)
            assert second.made == 0
            assert answered(there, batch_id) == sorted(f"c{i}" for i in range(LINES))


def test_a_batch_goes_on_at_another_server_when_its_own_stops(backbone, tmp_path):
    first, second = FakeEngine(backbone, token_sec=0.2), FakeEngine(backbone)
    with serving(backbone, tmp_path, second) as two, two.client() as there:
        with serving(backbone, tmp_path, first) as one, one.client() as here:
            batch_id = begin(here)
            wait_for(lambda: 0 < state(there, batch_id)["request_counts"]["completed"] < LINES, 30)
            assert second.made == 0
        wait_for(lambda: state(there, batch_id)["status"] == "completed", 30)
        assert answered(there, batch_id) == sorted(f"c{i}" for i in range(LINES))  # each line once
        assert 0 < second.made < 4 * LINES


def test_a_batch_can_be_cancelled_at_any_server(backbone, tmp_path):
    first = FakeEngine(backbone, token_sec=0.3)
    with (serving(backbone, tmp_path, first) as one, serving(backbone, tmp_path, FakeEngine(backbone)) as two,
          one.client() as here, two.client() as there):
        batch_id = begin(here)
        assert there.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelling"
        wait_for(lambda: state(there, batch_id)["status"] == "cancelled")
        made = len(answered(there, batch_id))
        wait_for(lambda: not first.live)
        assert len(answered(here, batch_id)) == made < LINES
        assert here.post(f"/v1/batches/{batch_id}/cancel").json()["status"] == "cancelled"
    assert not list(tmp_path.rglob("*.cancel"))


def test_a_claim_is_one_server_s_until_it_lets_go(tmp_path):
    held = claim(tmp_path / "deep" / "a.lock")
    assert held is not None and claim(tmp_path / "deep" / "a.lock") is None
    other = claim(tmp_path / "deep" / "b.lock")
    assert other is not None
    other.release()
    held.release()
    again = claim(tmp_path / "deep" / "a.lock")
    assert again is not None
    again.release()


def test_a_shared_store_is_swept_of_old_leftovers_only(tmp_path):
    new, old = tmp_path / ".incoming.new", tmp_path / ".incoming.old"
    for path in (new, old):
        path.mkdir()
    os.utime(old, (time.time() - 4000,) * 2)
    assert sweep([tmp_path], 3600) == 1 and new.is_dir() and not old.exists()
    assert sweep([tmp_path]) == 1 and not new.exists()
