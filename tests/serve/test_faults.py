"""The real engine over HTTP: exact answers, hot swaps, hostile and vanishing artefacts, fuzz, signals and kill -9."""

import concurrent.futures
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import openai
import pytest
from backbones import make
from http_kit import PLAIN, save, serving, wait_for

from foreword.artifact import load_prompt
from foreword.artifact.directory import FILES, MANIFEST, WEIGHTS
from foreword.generate import generate
from foreword.serve.engine import Engine
from foreword.serve.pool import Pool
from foreword.serve.settings import Wall
from foreword.serve.watch import Watch

KINDS = {"p1": ("prefix", 1), "p7": ("prefix", 7), "soft": ("prompt", 4), "mid": ("infix", 3)}
TEXT = "the quick brown fox"


@pytest.fixture(scope="module")
def backbone():
    return make("llama")


@pytest.fixture(scope="module")
def server(backbone, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    for seed, (name, (kind, length)) in enumerate(KINDS.items()):
        save(backbone, store / name, kind, length, seed)
    pool = Pool(backbone)
    engine = Engine(backbone, pool).start()
    wall = Wall(receive_sec=1.0, body_bytes=1 << 16, stall_sec=1.0)
    with serving(backbone, store, engine, pool, wall=wall, hub=("acme/*",)) as running:
        yield running
    pool.close()


def offline(backbone, store: Path, name: str | None, text: str, tokens: int = 12) -> str:
    prompt = load_prompt(store / name, backbone) if name else None
    return generate(backbone, [text], [prompt], max_new_tokens=tokens)[0]


def completion(http: httpx.Client, model: str, prompt: str = TEXT, **options) -> httpx.Response:
    body = {"model": model, "prompt": prompt, "max_tokens": 12, "temperature": 0, **options}
    return http.post("/v1/completions", json=body)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def upload(http: httpx.Client, name: str, path: Path, **changed: bytes) -> httpx.Response:
    content = {n: (path / n).read_bytes() for n in FILES if (path / n).is_file()} | changed
    return http.post("/v1/forewords", data={"name": name}, files=[("files", item) for item in content.items()])


# ---- exactness through HTTP ----
def test_mixed_requests_streamed_and_not_equal_their_single_runs(server, backbone):
    """Greedy, every kind of foreword and none, all at once."""
    names = [None, *KINDS]
    jobs = [(names[i % len(names)], f"{TEXT} {i}", bool(i % 2)) for i in range(20)]

    def ask(job) -> str:
        name, text, stream = job
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
            made = client.completions.create(
                model=name or PLAIN, prompt=text, max_tokens=12, temperature=0, stream=stream)
            return "".join(c.choices[0].text for c in made) if stream else made.choices[0].text

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, jobs))
    wanted = [offline(backbone, server.service.store, name, text) for name, text, _ in jobs]
    assert answers == wanted


def test_stops_seeds_and_usage_are_the_engine_s(server):
    with server.client() as http:
        whole = text_of(completion(http, "p7", ignore_eos=True))
        stop = whole[4:6]
        cut = completion(http, "p7", stop=[stop], ignore_eos=True).json()["choices"][0]
        assert cut == {"index": 0, "text": whole[: whole.index(stop)], "logprobs": None, "finish_reason": "stop"}
        sampled = [text_of(completion(http, "p7", temperature=1, seed=s, ignore_eos=True)) for s in (5, 5, 6)]
        assert sampled[0] == sampled[1] != sampled[2]
        several = completion(http, "p7", temperature=1, seed=5, n=3, ignore_eos=True).json()
        assert several["choices"][0]["text"] == sampled[0]
        assert several["usage"]["completion_tokens"] == 36
        chat = http.post("/v1/chat/completions", json={
            "model": "p7", "messages": [{"role": "user", "content": TEXT}], "max_tokens": 12, "temperature": 0,
            "ignore_eos": True, "logprobs": True, "top_logprobs": 2}).json()["choices"][0]
        assert chat["message"]["content"] == whole and len(chat["logprobs"]["content"]) == 12


def test_batch_files_in_and_out(server, backbone):
    lines = [{"custom_id": str(i), "method": "POST", "url": "/v1/completions", "body": {
        "model": name, "prompt": TEXT, "max_tokens": 12, "temperature": 0}} for i, name in enumerate([*KINDS, "none"])]
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client:
        content = "\n".join(map(json.dumps, lines)).encode()
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", 20)
        done = client.batches.retrieve(batch.id)
        assert (done.request_counts.completed, done.request_counts.failed) == (4, 1)
        rows = [json.loads(line) for line in client.files.content(done.output_file_id).text.splitlines()]
        bad = json.loads(client.files.content(done.error_file_id).text)
        assert client.files.delete(file.id).deleted
    found = {row["custom_id"]: row["response"]["body"]["choices"][0]["text"] for row in rows}
    assert found == {str(i): offline(backbone, server.service.store, name, TEXT) for i, name in enumerate(KINDS)}
    assert bad["custom_id"] == "4" and bad["response"]["status_code"] == 404


# ---- the store while serving ----
def test_a_stored_foreword_serves_at_once_and_a_new_version_takes_over(server, backbone, tmp_path):
    one, two = save(backbone, tmp_path / "one", seed=11), save(backbone, tmp_path / "two", length=9, seed=12)
    with server.client() as http:
        assert completion(http, "fresh").status_code == 404
        first = upload(http, "fresh", one)
        assert first.status_code == 201 and first.json()["kind"] == "prefix" and first.json()["length"] == 3
        assert text_of(completion(http, "fresh")) == offline(backbone, tmp_path, "one", TEXT)
        second = upload(http, "fresh", two).json()
        assert text_of(completion(http, "fresh")) == offline(backbone, tmp_path, "two", TEXT)
        pinned = f"fresh@{first.json()['version']}"
        assert text_of(completion(http, pinned)) == offline(backbone, tmp_path, "one", TEXT)
        assert second["version"] != first.json()["version"]
        assert http.delete("/v1/forewords/fresh").status_code == 200
        assert completion(http, "fresh").status_code == completion(http, pinned).status_code == 404


def test_a_swap_does_not_disturb_the_rows_that_run(server, backbone, tmp_path):
    save(backbone, tmp_path / "one", seed=21), save(backbone, tmp_path / "two", seed=22)
    wanted = offline(backbone, tmp_path, "one", TEXT, 200)
    with server.client() as http, server.client() as other:
        upload(http, "swap", tmp_path / "one")
        body = {"model": "swap", "prompt": TEXT, "max_tokens": 200, "temperature": 0, "stream": True}
        text = ""
        with http.stream("POST", "/v1/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    if not text:
                        assert upload(other, "swap", tmp_path / "two").status_code == 201
                    text += json.loads(line[6:])["choices"][0]["text"]
        assert text == wanted
        assert text_of(completion(http, "swap")) == offline(backbone, tmp_path, "two", TEXT)


def test_the_store_is_a_watched_directory(server, backbone):
    store, watch = server.service.store, Watch(server.service, 60)
    with server.client() as http:
        save(backbone, store / "dropped", seed=31)
        assert text_of(completion(http, "dropped")) == offline(backbone, store, "dropped", TEXT)
        assert watch.look() == (["local/dropped"], [])
        save(backbone, store / "dropped", length=5, seed=32)  # replaced in place: counts at once
        assert text_of(completion(http, "dropped")) == offline(backbone, store, "dropped", TEXT)
        changed, gone = watch.look()
        assert changed == ["local/dropped"] and len(gone) == 1 and gone[0].startswith("local/dropped@")
        shutil.rmtree(store / "dropped")
        assert completion(http, "dropped").status_code == 404
        assert len(watch.look()[1]) == 1 and "dropped" not in str(server.service.pool.names())


def test_hostile_and_damaged_uploads_are_refused_and_leave_nothing(server, backbone, tmp_path):
    good = save(backbone, tmp_path / "good", seed=41)
    other = save(make("llama", seed=1), tmp_path / "other", seed=41)
    manifest = json.loads((good / MANIFEST).read_text())
    weights = (good / WEIGHTS).read_bytes()
    nan = bytearray(weights)
    nan[-4:] = b"\x00\x00\xc0\x7f"
    huge = json.dumps({**manifest, "spec": {**manifest["spec"], "length": 10**9}}).encode()
    cases = {
        "cut": {WEIGHTS: weights[:-7]},
        "header": {WEIGHTS: b"\xff" * 8 + weights[8:]},
        "nan": {WEIGHTS: bytes(nan)},
        "changed": {WEIGHTS: weights[:-4] + b"\x00\x00\x80\x3f"},
        "huge": {MANIFEST: huge},
        "json": {MANIFEST: b"[" * 100_000},
    }
    with server.client() as http:
        answers = {name: upload(http, "evil", good, **changed) for name, changed in cases.items()}
        answers["backbone"] = upload(http, "evil", other)
        for name, file in (("pickle", "adapter_model.bin"), ("path", "../../x")):
            answers[name] = http.post("/v1/forewords", data={"name": "evil"}, files={"files": (file, b"x")})
        answers["name"] = upload(http, "../evil", good)
        answers["taken"] = upload(http, PLAIN, good)
        assert completion(http, "evil").status_code == 404
    assert {n: a.status_code for n, a in answers.items()} == {
        **dict.fromkeys([*cases, "backbone"], 422), "pickle": 400, "path": 400, "name": 400, "taken": 409}
    for answer in answers.values():
        assert answer.json()["error"]["message"] and str(server.service.store) not in answer.text
        assert ".incoming" not in answer.text
    assert [p.name for p in server.service.store.iterdir() if p.name.startswith((".inc", ".che"))] == []


def test_a_foreword_that_is_damaged_on_the_disk_fails_alone(server, backbone):
    store = server.service.store
    save(backbone, store / "rotten", seed=51)
    content = bytearray((store / "rotten" / WEIGHTS).read_bytes())
    content[-2] ^= 1
    (store / "rotten" / WEIGHTS).write_bytes(content)
    with server.client() as http:
        bad = completion(http, "rotten")
        assert bad.status_code == 500 and str(store) not in bad.text
        assert text_of(completion(http, "p1")) == offline(backbone, store, "p1", TEXT)
    shutil.rmtree(store / "rotten")


def test_storing_a_version_again_heals_what_the_disk_damaged(server, backbone, tmp_path):
    artefact, home = save(backbone, tmp_path / "sound", seed=52), server.service.store / "heals"
    with server.client() as http:
        version = upload(http, "heals", artefact).json()["version"]
        stored = home / version / WEIGHTS
        before = stored.stat()
        assert upload(http, "heals", artefact).json()["version"] == version
        assert stored.stat().st_mtime_ns == before.st_mtime_ns  # sound files stay: the pool need not load them again
        content = bytearray(stored.read_bytes())
        content[-2] ^= 1
        stored.write_bytes(content)
        assert completion(http, "heals").status_code == 500
        assert upload(http, "heals", artefact).json()["version"] == version
        assert stored.read_bytes() == (artefact / WEIGHTS).read_bytes()
        assert text_of(completion(http, "heals")) == offline(backbone, server.service.store, f"heals/{version}", TEXT)
        assert http.delete("/v1/forewords/heals").status_code == 200


def test_hub_ids_need_the_list(server):
    with server.client() as http:
        refused = http.post("/v1/forewords", json={"name": "h", "source": "evil/x"})
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "source_not_allowed"
        assert http.post("/v1/forewords", json={"name": "h", "source": "../x"}).status_code == 400


# ---- clients with bad manners ----
def test_a_body_over_the_limit_is_413_whether_it_says_so_or_not(server):
    with server.client() as http:
        body = json.dumps({"model": PLAIN, "prompt": "a" * (1 << 16)})
        headers = {"Content-Type": "application/json"}
        assert http.post("/v1/completions", content=body, headers=headers).status_code == 413
        pieces = (body[i : i + 1000].encode() for i in range(0, len(body), 1000))
        assert http.post("/v1/completions", content=pieces, headers=headers).status_code == 413


def test_a_client_that_stalls_in_its_body_is_let_go(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                     b"Content-Length: 100\r\n\r\n{")
        assert b" 408 " in slow.recv(1000)


def test_a_client_that_reads_nothing_loses_its_row(server):
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "p1", "prompt": TEXT, "n": 64, "max_tokens": 400, "stream": True, "ignore_eos": True,
                       "temperature": 0, "logprobs": 20}).encode()
    head = ("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.connect((host, int(port)))
        slow.sendall(head.encode() + body)
        wait_for(lambda: server.engine.stats().running_rows > 0)
        wait_for(lambda: server.engine.stats().running_rows == 0, 60)
    assert server.engine.stats().finished.get("cancelled", 0) >= 1


def test_a_flood_is_refused_with_429_and_the_rest_is_answered(backbone, tmp_path):
    from foreword.serve.capacity import Capacity

    pool = Pool(backbone)
    engine = Engine(backbone, pool, Capacity(rows=2, queued=4)).start()
    with serving(backbone, tmp_path, engine, pool) as running, concurrent.futures.ThreadPoolExecutor(24) as threads:
        def ask(_) -> httpx.Response:
            with running.client() as http:
                return completion(http, PLAIN, max_tokens=60, ignore_eos=True)

        # Rows are taken first: what comes at once counts against the queue alone until the engine takes a row from it.
        first = [threads.submit(ask, n) for n in range(2)]
        wait_for(lambda: engine.stats().running_rows == 2 or all(one.done() for one in first))
        answers = [*threads.map(ask, range(22)), *(one.result() for one in first)]
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429} and statuses.count(200) >= 6
    assert all(int(a.headers["retry-after"]) >= 1 for a in answers if a.status_code == 429)
    assert len({text_of(a) for a in answers if a.status_code == 200}) == 1
    pool.close()


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_fuzzed_bodies_never_crash_the_server_and_answers_fit_the_document(server, mode):
    """Schemathesis on our own OpenAPI document; FOREWORD_FUZZ sets the examples per operation."""
    import hypothesis
    import schemathesis
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    counted = 0

    def try_out(operation) -> None:
        @hypothesis.given(case=operation.as_strategy(generation_mode=GenerationMode(mode)))
        @hypothesis.settings(max_examples=int(os.environ.get("FOREWORD_FUZZ", "10")), deadline=None, database=None,
                             derandomize=True, suppress_health_check=list(hypothesis.HealthCheck))
        def check(case) -> None:
            nonlocal counted
            counted += 1
            answer = case.call()
            assert answer.status_code != 500, (case.body, answer.text)
            # A body can fit the document and still be refused: no such foreword, two fields that contradict each other.
            case.validate_response(answer, excluded_checks=[positive_data_acceptance])

        check()

    for operation in schema.get_all_operations():
        if mode == "positive" or operation.ok().body or operation.ok().query:  # else nothing can be wrong in it
            try_out(operation.ok())
    print(f"{mode}: {counted} requests")
    assert counted > 50
    with server.client() as http:
        assert http.get("/health").status_code == 200
        assert text_of(completion(http, "p1"))
    assert '"crash"' not in server.logs.getvalue()


# ---- the process ----
@contextlib.contextmanager
def process(store: Path, *settings: str):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "foreword", "serve", "--backbone", "foreword-decoder-6m", "--store", str(store),
               "--port", str(port), "--threads", "1", "--name", PLAIN, *settings]
    with (store / "log.txt").open("a") as log:
        running = subprocess.Popen(command, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: _ready(url) or running.poll() is not None, 120)
        yield running, url
    finally:
        running.kill()
        running.wait()


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.HTTPError:
        return False


@pytest.mark.slow
def test_sigterm_finishes_what_is_under_way_and_exits_0(tmp_path):
    with process(tmp_path) as (running, url), httpx.Client(base_url=url, timeout=60) as http:
        body = {"model": PLAIN, "prompt": "Once", "max_tokens": 150, "temperature": 0, "ignore_eos": True,
                "stream": True}
        with http.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            first = next(line for line in lines if line.startswith("data: {"))
            running.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert first and rest[-1] == "data: [DONE]" and '"finish_reason":"length"' in rest[-2]
        assert running.wait(30) == 0
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{url}/ready")
    rows = [json.loads(line) for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert rows[0]["event"] == "starting" and rows[-1]["event"] == "stopped"


@pytest.mark.slow
def test_kill_9_under_load_then_restart_goes_on_with_the_batch(tmp_path):
    """Every line of the batch has exactly one answer in the end, and all answers are those of a calm run."""
    lines = [{"custom_id": f"r{i}", "url": "/v1/completions", "body": {
        "model": PLAIN, "prompt": f"Number {i % 5}", "max_tokens": 40, "temperature": 0, "ignore_eos": True}}
        for i in range(60)]
    content = "\n".join(map(json.dumps, lines)).encode()
    with process(tmp_path) as (running, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        file = client.files.create(file=("in.jsonl", content), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")
        wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed >= 5, 60)
        running.kill()
        running.wait()
    with process(tmp_path) as (running, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0)
        wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", 120)
        rows = list(map(json.loads, client.files.content(batch_output(client, batch.id)).text.splitlines()))
        calm = {i: client.completions.create(model=PLAIN, prompt=f"Number {i}", max_tokens=40, temperature=0,
                                             extra_body={"ignore_eos": True}).choices[0].text for i in range(5)}
    assert sorted(row["custom_id"] for row in rows) == sorted(line["custom_id"] for line in lines)
    for row in rows:
        assert row["response"]["body"]["choices"][0]["text"] == calm[int(row["custom_id"][1:]) % 5]


def batch_output(client: openai.OpenAI, batch_id: str) -> str:
    return client.batches.retrieve(batch_id).output_file_id


def test_a_server_without_keys_stays_on_this_machine(tmp_path, capsys):
    from foreword.cli import main

    assert main(["serve", "--backbone", "foreword-decoder-6m", "--store", str(tmp_path), "--host", "0.0.0.0"]) == 2
    assert "foreword keys add" in capsys.readouterr().err
    assert main(["serve", "--store", str(tmp_path)]) == 2
    assert "backbone is missing" in capsys.readouterr().err
    assert main(["serve", "--backbone", "x", "--store", str(tmp_path), "capacity.row=3"]) == 2
    assert "rows" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--backbone", "x", "--store", str(tmp_path), "--port", port]) == 2
    assert f"port = {port}" in capsys.readouterr().err
