"""Ray Serve: two replicas and a third when it gets busy, behind one address; each answers exactly as one server does.

The tests against a real cluster on this machine share it, so their order counts: the last stops it.
"""

import collections
import concurrent.futures
import contextlib
import json
import random
import signal
import socket
from types import SimpleNamespace

import pytest
from ray_kit import needs_ray, on_ray

from foreword.artifact import load_prompt, save_prompt
from foreword.artifact.directory import FILES
from foreword.cli import main
from foreword.config import build
from foreword.engines.ray_settings import Fleet, RayGatewayConfig, RayServeConfig, deployment_options
from foreword.errors import ConfigError
from foreword.generate import generate
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import PromptSpec
from foreword.serve.tenants import Keyring

KINDS = {"p1": {"length": 1}, "p9": {"length": 9}, "soft": {"kind": "prompt", "length": 4},
         "mid": {"kind": "infix", "length": 3}}
TEXTS = ("the quick brown fox", "jumps", "over the lazy dog again and again")
SCALING = ("ray.min_replicas=2", "ray.max_replicas=3", "ray.num_cpus=0.1", "ray.target_ongoing=3",
           "ray.look_back_sec=11", "ray.upscale_delay_sec=1", "wall.receive_sec=600")
LABEL = "x-foreword-replica"


def draw(backbone, spec, path, seed):
    import torch

    prompt, generator = make_prompt(PromptSpec(**spec), backbone), torch.Generator().manual_seed(seed)
    for table in prompt.tables.values():
        table.set(torch.randn(table().shape, generator=generator))
    return save_prompt(prompt, path, backbone)


@pytest.fixture(scope="module")
def store(backbone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    for seed, (name, spec) in enumerate(KINDS.items()):
        draw(backbone, spec, folder / name, seed)
    return folder


@pytest.fixture(scope="module")
def world(backbone, store):
    """The cluster, a key of the operator's and one of a tenant's."""
    keys = {"operator": Keyring(store).add("local", operator=True), "ann": Keyring(store).add("ann", grants=("p9",))}
    with on_ray(backbone.source, store, *SCALING) as cluster:
        yield cluster, keys


def offline(backbone, path, text, tokens=12):
    prompt = load_prompt(path, backbone) if path else None
    return generate(backbone, [text], [prompt], max_new_tokens=tokens)[0]


def body(model, text, tokens=12, **more):
    return {"model": model, "prompt": text, "max_tokens": tokens, "temperature": 0, **more}


def streamed(answer) -> tuple[str, str]:
    """Return a stream's text and its finish reason."""
    chunks = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    return "".join(c["choices"][0]["text"] for c in chunks), chunks[-1]["choices"][0]["finish_reason"]


def at_each_replica(cluster, client, ask, least=2):
    """Ask until `least` replicas have answered, and return the answers by replica."""
    found = collections.defaultdict(list)

    def enough():
        answer = ask(client)
        found[answer.headers[LABEL]].append(answer)
        return len(found) >= least

    cluster.wait(enough)
    return found


@pytest.mark.slow
@needs_ray
@pytest.mark.timeout(400)
def test_mixed_forewords_streamed_and_not_equal_their_single_runs_at_every_replica(world, backbone, store):
    cluster, keys = world
    jobs = [(name, text, stream) for name in (*KINDS, None) for text in TEXTS for stream in (False, True)] * 2
    random.Random(0).shuffle(jobs)
    with cluster.client(keys["operator"]) as client, concurrent.futures.ThreadPoolExecutor(8) as many:

        def run(job):
            name, text, stream = job
            with client.stream("POST", "/v1/completions", json=body(name or "plain", text, stream=stream)) as answer:
                assert answer.status_code == 200, answer.read()
                assert len(answer.headers.get_list("x-request-id")) == 1
                if stream:
                    assert answer.headers["content-type"].startswith("text/event-stream")
                    return answer.headers[LABEL], streamed(answer)[0]
                return answer.headers[LABEL], json.loads(answer.read())["choices"][0]["text"]

        answers = list(many.map(run, jobs))
    wrong = [(job, text) for job, (_, text) in zip(jobs, answers, strict=True)
             if text != offline(backbone, job[0] and store / job[0], job[1])]
    assert not wrong
    assert len({replica for replica, _ in answers}) >= 2


@pytest.mark.slow
@needs_ray
@pytest.mark.timeout(400)
def test_a_bad_key_is_refused_and_a_tenant_sees_its_own_at_every_replica(world):
    cluster, keys = world
    with cluster.client("fw-00000000-nonsense") as stranger, cluster.client(keys["ann"]) as ann:
        for answers in at_each_replica(cluster, stranger, lambda c: c.get("/v1/models")).values():
            assert answers[0].status_code == 401 and answers[0].json()["error"]["code"] == "invalid_api_key"
        for answers in at_each_replica(cluster, ann, lambda c: c.get("/v1/models")).values():
            assert {model["id"] for model in answers[0].json()["data"]} == {"plain", "p9"}
        refused = ann.post("/v1/completions", json=body("p1", "x"))
        assert refused.status_code == 404 and refused.json()["error"]["code"] == "model_not_found"


@pytest.mark.slow
@needs_ray
@pytest.mark.timeout(400)
def test_what_one_replica_stores_swaps_or_deletes_counts_at_the_others(world, backbone, tmp_path):
    cluster, keys = world
    with cluster.client(keys["ann"]) as client:

        def put(seed):
            path = draw(backbone, {"length": 5}, tmp_path / f"own{seed}", seed)
            files = [("files", (name, (path / name).read_bytes())) for name in FILES if (path / name).is_file()]
            made = client.post("/v1/forewords", data={"name": "own"}, files=files)
            assert made.status_code == 201, made.text
            return path

        ask = lambda c: c.post("/v1/completions", json=body("own", TEXTS[0]))  # noqa: E731
        for seed in (7, 8):  # stored, then replaced by another
            right = offline(backbone, put(seed), TEXTS[0])
            for answers in at_each_replica(cluster, client, ask).values():
                assert [a.json()["choices"][0]["text"] for a in answers] == [right] * len(answers)
        assert client.delete("/v1/forewords/own").status_code == 200
        for answers in at_each_replica(cluster, client, ask).values():
            assert {a.status_code for a in answers} == {404}


@pytest.mark.slow
@needs_ray
@pytest.mark.timeout(400)
def test_a_client_that_leaves_frees_its_rows(world):
    cluster, keys = world
    long = body("p1", "x", 450, ignore_eos=True, n=2, stream=True)
    with cluster.client(keys["operator"]) as client:
        with client.stream("POST", "/v1/completions", json=long) as answer:
            replica = answer.headers[LABEL]
            next(answer.iter_lines())

        def rows():
            found = client.get("/v1/status")
            return found.headers[LABEL] == replica and found.json()["engine"]["running_rows"] == 0

        cluster.wait(rows)


@pytest.mark.slow
@needs_ray
@pytest.mark.timeout(400)
def test_more_requests_under_way_bring_a_third_replica(world):
    cluster, keys = world
    host, port = cluster.url.removeprefix("http://").split(":")
    head = (f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {keys['operator']}\r\n"
            "Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{")
    with contextlib.ExitStack() as stack:
        for _ in range(12):  # whose bodies do not come: they keep replicas busy, but not this machine
            stack.enter_context(socket.create_connection((host, int(port)))).sendall(head.encode())
        cluster.wait(lambda: [e for e in cluster.events if e.get("replicas", {}).get("RUNNING") == 3], 300)


@pytest.mark.slow
@needs_ray
@pytest.mark.timeout(400)
def test_when_it_is_stopped_streams_under_way_end_whole(world):
    cluster, keys = world
    with cluster.client(keys["operator"]) as client:
        request = body("p9", TEXTS[2], 400, ignore_eos=True, stream=True)
        with client.stream("POST", "/v1/completions", json=request) as answer:
            lines = answer.iter_lines()
            next(lines)
            cluster.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2][6:])["choices"][0]["finish_reason"] == "length"
    assert cluster.process.wait(120) == 0, "".join(cluster.lines[-60:])
    assert any(event["event"] == "stopped" for event in cluster.events)


@needs_ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # Ray's own, at its import
def test_a_serve_config_file_can_name_the_application(backbone, tmp_path):
    from foreword.engines.ray_serve import app

    args = {"backbone": backbone.source, "store": str(tmp_path), "ray": {"min_replicas": 2, "max_replicas": 5}}
    with pytest.raises(ConfigError, match="keys add TENANT"):  # Ray's proxies may listen anywhere
        app(args)
    made = app({**args, "open": True})._bound_deployment
    scaling = made._deployment_config.autoscaling_config
    assert (made.name, scaling.min_replicas, scaling.max_replicas) == ("Foreword", 2, 5)
    with pytest.raises(ConfigError, match="did you mean 'max_replicas'"):
        app({**args, "ray": {"max_replica": 5}})


def test_the_settings_become_the_deployment_s():
    fleet = Fleet(
        min_replicas=2, max_replicas=6, initial_replicas=3, look_back_sec=15, upscale_delay_sec=1, num_gpus=0.5
    )
    config = RayServeConfig("b", "s", ray=fleet, drain_sec=40)
    options = deployment_options(config)
    assert options["autoscaling_config"] == {
        "min_replicas": 2, "max_replicas": 6, "initial_replicas": 3, "target_ongoing_requests": 96.0,
        "look_back_period_s": 15, "upscale_delay_s": 1, "downscale_delay_s": 600.0,
    }
    assert options["ray_actor_options"] == {"num_cpus": 1.0, "num_gpus": 0.5}
    assert options["graceful_shutdown_timeout_s"] > 40 and config.shared
    assert options["max_ongoing_requests"] > config.capacity.rows + config.capacity.queued
    two = RayGatewayConfig("b", "s", vllm=("http://a:1", "http://b:1"), ray=fleet)
    assert deployment_options(two)["autoscaling_config"]["target_ongoing_requests"] == 192.0


@pytest.mark.parametrize(("word", "why"), [
    ("ray.min_replicas=5", "ray.max_replicas = 4 must be at least 1 and at least ray.min_replicas = 5"),
    ("ray.min_replicas=-1", "ray.min_replicas = -1 must be at least 0"),
    ("ray.initial_replicas=9", "ray.initial_replicas = 9 must be 1 to 4"),
    ("ray.target_ongoing=0", "ray.target_ongoing = 0.0 must be above 0"),
    ("ray.look_back_sec=5", "ray.look_back_sec = 5.0 must be above 10"),
    ("ray.num_gpus=-1", "ray.num_gpus = -1.0 must be at least 0"),
    ("ray.replicas=3", "unknown field 'ray.replicas'"),
    ("ray=3", "ray.address"),
])
def test_bad_settings_are_refused_before_ray_is_touched(tmp_path, capsys, monkeypatch, word, why):
    monkeypatch.setattr("foreword.cli.serve.need", lambda *_: None)  # also where Ray is not installed
    assert main(["serve", "--ray", "local", "--backbone", "x", "--store", str(tmp_path), word]) == 2
    assert why in capsys.readouterr().err


def test_replicas_that_cannot_start_are_told_with_their_own_fault():
    from foreword.engines.ray_serve import why_not

    text = "failed to start 3 times.\nTraceback ...\nforeword.errors.BackboneError: backbone 'x' is nowhere; name one\n"
    for message, why in ((text, "backbone 'x' is nowhere; name one"), ("out of memory", "failed out of memory")):
        told = SimpleNamespace(message="", deployments={"Foreword": SimpleNamespace(message=message)})
        serve = SimpleNamespace(status=lambda told=told: SimpleNamespace(applications={"foreword": told}))
        assert " ".join(why_not(serve, "foreword", RuntimeError("failed")).split()) == why


def test_a_yaml_file_with_replicas_chooses_ray_and_says_what_is_missing(tmp_path, capsys, monkeypatch):
    (tmp_path / "serve.yaml").write_text("backbone: x\nstore: s\nray: {min_replicas: 2}\n")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["serve", str(tmp_path / "serve.yaml")]) == 2
    assert "pip install 'foreword[ray-serve]'" in capsys.readouterr().err
    assert build(RayServeConfig, {"backbone": "x", "store": "s", "ray": {"min_replicas": 2}}).ray.address == "local"
