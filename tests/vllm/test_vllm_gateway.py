"""Everything at once over HTTP: `foreword gateway` before a real vLLM server, 500 mixed requests, aborts, hot swaps."""

import concurrent.futures
import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import vllm_kit as kit

kit.need_vllm()

from foreword.artifact import save_prompt  # noqa: E402
from foreword.generate.offline import generate  # noqa: E402

REQUESTS, CLIENTS, SWAPS, ABORTS = 500, 12, 4, 20
LETTERS = "abcdefghijklmnopqrstuvwxyz ABCDEFGHIJ0123456789"


@contextlib.contextmanager
def process(command: list, log: Path) -> Iterator[subprocess.Popen]:
    """Run a server with its words in a file; it must end with code 0 on SIGTERM."""
    with log.open("w") as out, subprocess.Popen([str(word) for word in command], stdout=out, stderr=out) as running:
        try:
            yield running
            running.send_signal(signal.SIGTERM)
            assert running.wait(60) == 0
        finally:
            running.kill()


def wait_for(true, running: subprocess.Popen, log: Path, seconds: float = 900) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end and running.poll() is None, log.read_text()[-3000:]
        time.sleep(0.2)


def answers(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(url).status_code == 200
    return False


def address_in(log: Path) -> str | None:
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    return next((line["address"] for line in lines if "address" in line), None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A backbone, 32 forewords in a store, vLLM, the gateway before it, and the gateway's address."""
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "prefixes").mkdir()
    backbone = kit.backbone_in(folder / "plain", "llama")
    prompts = kit.prompts_for(backbone)
    prompts |= {f"more-{n}": kit.drawn(backbone, kit.PromptSpec(length=5 * n + 1), 50 + n) for n in range(16)}
    assert len(prompts) == 32
    kit.saved(prompts, backbone, folder / "store")
    transfer = {"kv_connector": "ForewordConnector", "kv_role": "kv_both",
                "kv_connector_extra_config": {"prefix_dir": str(folder / "prefixes")}}
    with socket_port() as port:
        pass
    vllm = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", backbone.source, "--port", port,
            "--dtype", "float32", "--max-model-len", 512, "--block-size", kit.BLOCK, "--max-num-seqs", 16,
            "--enforce-eager", "--disable-hybrid-kv-cache-manager", "--host", "127.0.0.1",
            "--kv-transfer-config", json.dumps(transfer)]
    gateway = [sys.executable, "-m", "foreword", "gateway", "--store", folder / "store", "--backbone", backbone.source,
               "--prefixes", folder / "prefixes", "--vllm", f"http://127.0.0.1:{port}", "--port", 0, "--threads", 1]
    logs = folder / "vllm.log", folder / "gateway.log"
    with process(vllm, logs[0]) as below:
        wait_for(lambda: answers(f"http://127.0.0.1:{port}/health"), below, logs[0])
        with process(gateway, logs[1]) as above:
            wait_for(lambda: address_in(logs[1]), above, logs[1])
            yield backbone, prompts, folder / "store", address_in(logs[1])


def socket_port():
    """Return a context that holds a free port for a moment."""
    import socket

    @contextlib.contextmanager
    def held() -> Iterator[int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            yield probe.getsockname()[1]

    return held()


class Right:
    """The right answers of each foreword in all its versions, made when asked for, one at a time."""

    def __init__(self, backbone, prompts) -> None:
        self.backbone, self.versions, self.known = backbone, {name: [prompt] for name, prompt in prompts.items()}, {}

    def texts(self, name, first: int, last: int, text: str, new: int) -> set[str]:
        """Return what versions `first` to `last` answer."""
        prompts = [None] if name is None else self.versions[name][first : last + 1]
        made = set()
        for prompt in prompts:
            key = (id(prompt), text, new)
            if key not in self.known:
                self.known[key] = generate(self.backbone, [text], [prompt], max_new_tokens=new)[0]
            made.add(self.known[key])
        return made


@pytest.mark.timeout(2400)
def test_500_mixed_requests_equal_their_single_runs(world):
    backbone, prompts, store, url = world
    dice, right = random.Random(0), Right(backbone, prompts)
    names = [*prompts, None]
    swapping = set(dice.sample(range(REQUESTS), SWAPS))
    aborting = set(dice.sample(range(1, REQUESTS, 2), ABORTS))  # the odd ones are streamed

    def one(number: int) -> tuple | None:
        own = random.Random(number)
        name = names[number % len(names)]
        text, new = "".join(own.choices(LETTERS, k=own.randint(1, 40))), own.randint(1, 24)
        before = len(right.versions[name]) - 1 if name else 0
        body = {"model": name or "plain", "prompt": text, "max_tokens": new, "temperature": 0}
        with httpx.Client(base_url=url, timeout=300) as client:
            got = streamed(client, body, number in aborting) if number % 2 else whole(client, body, text)
        after = len(right.versions[name]) - 1 if name else 0
        return None if got is None else (name, before, after, text, new, got)

    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as clients:
        under_way = []
        for number in range(REQUESTS):
            if number in swapping:
                name = dice.choice(list(prompts))
                prompt = kit.drawn(backbone, prompts[name].spec, 1000 + number)
                right.versions[name].append(prompt)  # from here on both may answer
                save_prompt(prompt, store / name, backbone)
            under_way.append(clients.submit(one, number))
            if dice.random() < 0.2:
                time.sleep(dice.random() * 0.05)
        done = [found for task in under_way if (found := task.result()) is not None]
    assert len(done) == REQUESTS - ABORTS
    wrong = [entry for entry in done if entry[-1] not in right.texts(*entry[:-1])]
    assert not wrong, wrong[:3]
    assert httpx.get(f"{url}/v1/status").json()["engine"]["running_rows"] == 0


def whole(client: httpx.Client, body: dict, text: str) -> str:
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    made = answer.json()
    assert made["usage"]["prompt_tokens"] == len(text)
    return made["choices"][0]["text"]


def streamed(client: httpx.Client, body: dict, abort: bool) -> str | None:
    """Return a stream's text, or None after leaving at its first event."""
    made = ""
    with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                made += event["choices"][0]["text"]
                if abort:
                    return None
    return made


@pytest.mark.timeout(900)
def test_logprobs_are_the_models_own(world, measure):
    import torch

    from foreword.generate.offline import logits

    backbone, prompts, _, url = world
    text, name = "the quick brown fox", "prefix-start-8"
    body = {"model": name, "prompt": text, "max_tokens": 1, "temperature": 1, "seed": 3, "logprobs": 3}
    told = httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["choices"][0]["logprobs"]
    right = logits(backbone, [text], [prompts[name]])[0][-1].log_softmax(-1)
    top = torch.topk(right, 3).values.tolist()
    seen = sorted(told["top_logprobs"][0].values(), reverse=True)
    worst = max(abs(mine - theirs) for mine, theirs in zip(seen, top, strict=True))
    measure("vLLM over HTTP, log p", "llama", worst, kit.TOLERANCE)
