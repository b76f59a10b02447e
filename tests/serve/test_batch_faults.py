"""Batches that meet deleted files, lines that can never be answered, and texts that two readers cut differently."""

import json
import threading

import pytest
from backbones import make
from fake_engine import FakeEngine, FakePool
from http_kit import PLAIN, serving, wait_for

from foreword.serve import batches
from foreword.serve.batches import check_lines, lines
from foreword.serve.capacity import Capacity
from foreword.serve.catalog import tree_bytes
from foreword.serve.files import Files
from foreword.serve.tenants import Keyring, Quota, Tenant

BODY = {"model": PLAIN, "prompt": "x", "max_tokens": 4}


@pytest.fixture(scope="module")
def backbone():
    return make("llama")


@pytest.fixture
def server(backbone, tmp_path):
    with serving(backbone, tmp_path, FakeEngine(backbone), FakePool()) as running:
        yield running


def rows(count: int, **body) -> list[dict]:
    return [{"custom_id": f"c{i}", "url": "/v1/completions", "body": BODY | body} for i in range(count)]


def put(client, content: bytes) -> str:
    made = client.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": "batch"})
    assert made.status_code == 200, made.text
    return made.json()["id"]


def begin(client, content: bytes, **more):
    asked = {"input_file_id": put(client, content), "endpoint": "/v1/completions"} | more
    return client.post("/v1/batches", json=asked)


def as_lines(found: list[dict]) -> bytes:
    return "\n".join(map(json.dumps, found)).encode()


def ended(client, batch_id: str) -> dict:
    def state() -> dict:
        return client.get(f"/v1/batches/{batch_id}").json()

    wait_for(lambda: state()["status"] != "in_progress", 20)
    return state()


def content(client, file_id: str) -> list[dict]:
    return [json.loads(line) for line in client.get(f"/v1/files/{file_id}/content").text.splitlines()]


# ---- a full place ----
def test_answers_that_fill_a_tenant_s_place_end_its_batch(backbone, tmp_path):
    content_in = as_lines(rows(200))
    key = Keyring(tmp_path).add("ann", quota=Quota(store_bytes=len(content_in) + 10_000))
    with serving(backbone, tmp_path, FakeEngine(backbone), FakePool()) as running, running.client(key) as http:
        done = ended(http, begin(http, content_in).json()["id"])
        made = content(http, done["output_file_id"])
    assert done["status"] == "failed" and "delete some first" in done["errors"]["data"][0]["message"]
    assert 0 < len(made) < 200 and done["request_counts"]["completed"] == len(made)
    assert tree_bytes(tmp_path / ".files" / "ann") <= len(content_in) + 10_000


# ---- files that go away ----
def test_a_batch_whose_input_was_deleted_before_the_restart_fails_with_the_reason(backbone, tmp_path):
    with serving(backbone, tmp_path, FakeEngine(backbone, token_sec=0.2), FakePool()) as first, first.client() as http:
        batch = begin(http, as_lines(rows(30))).json()
    with serving(backbone, tmp_path / "aside", FakeEngine(backbone), FakePool()):
        Files(tmp_path).remove(Tenant(), batch["input_file_id"])  # while no server works on it
    with serving(backbone, tmp_path, FakeEngine(backbone), FakePool()) as second, second.client() as http:
        done = ended(http, batch["id"])
    assert done["status"] == "failed" and done["completed_at"]
    told = done["errors"]["data"][0]["message"]
    assert "input_file_id" in told and batch["input_file_id"] in told and "make a new batch" in told


def test_a_batch_whose_output_is_deleted_fails_and_the_file_does_not_come_back(backbone, tmp_path):
    engine = FakeEngine(backbone, token_sec=0.1)
    with serving(backbone, tmp_path, engine, FakePool()) as running, running.client() as http:
        batch = begin(http, as_lines(rows(60))).json()
        wait_for(lambda: http.get(f"/v1/batches/{batch['id']}").json()["request_counts"]["completed"])
        assert http.delete(f"/v1/files/{batch['output_file_id']}").status_code == 200
        done = ended(http, batch["id"])
        assert done["status"] == "failed" and "deleted" in done["errors"]["data"][0]["message"]
        assert done["request_counts"]["completed"] < 60
        listed = http.get("/v1/files")
        assert listed.status_code == 200
        assert batch["output_file_id"] not in [file["id"] for file in listed.json()["data"]]
        wait_for(lambda: not engine.live)  # what ran for it was given up
    assert not list(tmp_path.rglob(f"{batch['output_file_id']}*"))


def test_half_a_file_is_left_out_of_the_list_and_is_404(tmp_path):
    files, tenant = Files(tmp_path), Tenant()
    whole, _ = files.make(tenant, "a", "batch")
    half, path = files.make(tenant, "b", "batch")
    path.with_suffix(".json").unlink()
    assert [file["id"] for file in files.all(tenant)] == [whole]
    with pytest.raises(Exception, match="does not exist") as caught:
        files.info(tenant, half)
    assert caught.value.status == 404


# ---- lines that can never be answered ----
def test_a_line_over_the_quota_s_rows_gets_its_400_and_the_batch_ends(backbone, tmp_path):
    key = Keyring(tmp_path).add("ann", quota=Quota(rows=2))
    with serving(backbone, tmp_path, FakeEngine(backbone), FakePool()) as running, running.client(key) as http:
        direct = http.post("/v1/completions", json=BODY | {"n": 3})
        assert direct.status_code == 400 and "retry-after" not in direct.headers
        assert direct.json()["error"]["param"] == "n" and "allows 2" in direct.json()["error"]["message"]
        found = rows(1) + [rows(1, n=3)[0] | {"custom_id": "large"}]
        done = ended(http, begin(http, as_lines(found)).json()["id"])
        assert done["status"] == "completed" and done["request_counts"] == {"total": 2, "completed": 1, "failed": 1}
        bad = content(http, done["error_file_id"])[0]
    assert bad["custom_id"] == "large" and bad["response"]["status_code"] == 400


def test_what_the_queue_could_never_take_is_400_and_no_come_back_later(backbone, tmp_path):
    engine = FakeEngine(backbone, capacity=Capacity(queued_per_tenant=4))
    with serving(backbone, tmp_path, engine, FakePool(), slots=2) as running, running.client() as http:
        for body in ({"n": 5}, {"prompt": ["a"] * 7}):
            answer = http.post("/v1/completions", json=BODY | body)
            assert answer.status_code == 400 and "at most 4 may wait" in answer.json()["error"]["message"], body
        for body in ({"n": 4}, {"prompt": ["a"] * 6}):
            assert http.post("/v1/completions", json=BODY | body).status_code == 200, body


# ---- how lines are read ----
def test_a_carriage_return_between_two_tokens_is_no_end_of_a_line(server):
    first = json.dumps(rows(1)[0]).replace(', "url"', ',\r "url"').encode()
    second = json.dumps(rows(2)[1]).encode()
    with server.client() as http:
        done = ended(http, begin(http, first + b"\r\n\r\n" + second + b"\r\n").json()["id"])
        assert done["status"] == "completed", done
        assert sorted(row["custom_id"] for row in content(http, done["output_file_id"])) == ["c0", "c1"]


def test_what_passes_the_check_of_a_line_is_read_as_the_check_read_it(tmp_path):
    path, good = tmp_path / "in.jsonl", json.dumps(rows(1)[0])
    accepted = 0
    for text in (good, good.replace(", ", ",\r"), good.replace('"x"', '"\u2028\x85é"'), good.replace("4", "9" * 5000),
                 good.replace('"x"', '"\\ud800"'), good.replace('"x"', "[" * 300 + "]" * 300), "\ufeff" + good):
        path.write_bytes(text.encode() + b"\n")
        faults, count = check_lines(path, "/v1/completions")
        if not faults:
            accepted += 1
            assert [line["custom_id"] for line in lines(path)] == ["c0"] and count == 1
    assert accepted >= 3


def test_no_line_after_the_most_is_read_and_none_that_is_too_long(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "MOST_LINES", 3)
    path = tmp_path / "in.jsonl"
    path.write_bytes(as_lines(rows(4)) + b"\nnot json" * 20)
    faults, _ = check_lines(path, "/v1/completions")
    assert [fault["message"] for fault in faults] == ["the file has over 3 lines; it must have 1 to 3"]
    path.write_bytes(as_lines(rows(3)))
    assert check_lines(path, "/v1/completions") == ([], 3)
    assert "at most 50 are taken" in check_lines(path, "/v1/completions", 50)[0][0]["message"]
    path.write_bytes(b"\n\n")
    assert "no requests" in check_lines(path, "/v1/completions")[0][0]["message"]


def test_a_large_file_is_checked_while_others_are_answered(server, monkeypatch):
    reading, go_on = threading.Event(), threading.Event()

    def slow(*given):
        reading.set()
        assert go_on.wait(20)
        return check_lines(*given)

    monkeypatch.setattr(batches, "check_lines", slow)
    answers = []
    with server.client() as http:
        work = threading.Thread(target=lambda: answers.append(begin(http, as_lines(rows(2)))))
        work.start()
        try:
            assert reading.wait(10)
            with server.client() as other:
                assert other.post("/v1/completions", json=BODY, timeout=5).status_code == 200
        finally:
            go_on.set()
            work.join(20)
        assert answers[0].json()["request_counts"]["total"] == 2
        assert ended(http, answers[0].json()["id"])["status"] == "completed"


def test_half_a_surrogate_pair_in_metadata_is_refused_and_the_list_stays_whole(server):
    bad = {"a": "\ud800"}, {"\udfff": "a"}
    with server.client() as http:
        file_id = put(http, as_lines(rows(1)))
        for metadata in bad:
            asked = {"input_file_id": file_id, "endpoint": "/v1/completions", "metadata": metadata}
            answer = http.post("/v1/batches", content=json.dumps(asked), headers={"Content-Type": "application/json"})
            assert answer.status_code == 400 and answer.json()["error"]["param"] == "metadata", answer.text
        made = begin(http, as_lines(rows(1)), metadata={"ä": "☃"}).json()
        listed = http.get("/v1/batches")
        assert listed.status_code == 200 and [b["metadata"] for b in listed.json()["data"]] == [{"ä": "☃"}]
        ended(http, made["id"])
