"""Keys, quotas, and two tenants who try each other's names by every route there is."""

import json
import stat
import statistics
import time

import openai
import pytest
from backbones import make
from fake_engine import FakeEngine, FakePool
from http_kit import PLAIN, save, serving

from foreword.artifact.directory import FILES
from foreword.errors import ConfigError
from foreword.serve.faults import ApiError
from foreword.serve.limits import Limits
from foreword.serve.server import check_open
from foreword.serve.settings import ServeConfig
from foreword.serve.tenants import KEYS_FILE, Keyring, Quota, Tenant, describe


@pytest.fixture(scope="module")
def backbone():
    return make("llama")


@pytest.fixture(scope="module")
def world(backbone, tmp_path_factory):
    """A server with an operator, and tenants ann (granted `shared`) and bob, who both have a foreword `mine`."""
    store = tmp_path_factory.mktemp("store")
    for seed, path in enumerate(("shared", "private", "tenants/ann/mine", "tenants/ann/anns", "tenants/bob/mine")):
        save(backbone, store / path, seed=seed)
    ring = Keyring(store)
    keys = {"root": ring.add("local", operator=True), "bob": ring.add("bob")}
    keys["ann"] = ring.add("ann", grants=("shared",))
    with serving(backbone, store, FakeEngine(backbone), FakePool()) as running:
        yield running, keys


def files_of(path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (name, (path / name).read_bytes())) for name in FILES if (path / name).is_file()]


# ---- keys ----
def test_a_key_is_kept_as_a_hash_alone_and_shown_once(tmp_path):
    ring = Keyring(tmp_path)
    key = ring.add("ann", quota=Quota(rows=3))
    text = (tmp_path / KEYS_FILE).read_text()
    assert key.split("-", 2)[2] not in text and "ann" in text
    assert stat.S_IMODE((tmp_path / KEYS_FILE).stat().st_mode) == 0o600
    assert ring.who(f"Bearer {key}").quota.rows == 3
    assert "secret_sha256" not in describe(next(iter(ring.keys().values())))


def test_a_key_added_or_revoked_counts_at_once_in_a_ring_that_runs(tmp_path):
    ring, other = Keyring(tmp_path), Keyring(tmp_path)
    assert ring.who(None).operator  # no keys: everybody is the operator
    key = other.add("ann")
    assert ring.who(f"Bearer {key}").name == "ann"
    other.revoke(key.split("-")[1])
    for given in (f"Bearer {key}", None):  # with no key left nobody gets in, rather than everybody
        with pytest.raises(ApiError, match="missing or not valid") as caught:
            ring.who(given)
        assert caught.value.status == 401


def test_a_damaged_key_file_lets_nobody_in(tmp_path):
    (tmp_path / KEYS_FILE).write_text("{")
    with pytest.raises(ApiError):
        Keyring(tmp_path).who(None)
    with pytest.raises(ConfigError, match="damaged"):
        Keyring(tmp_path).keys()


def test_a_key_file_that_is_gone_or_cannot_be_read_lets_nobody_in(tmp_path):
    ring, path = Keyring(tmp_path), tmp_path / KEYS_FILE
    key = Keyring(tmp_path).add("ann")
    assert ring.who(f"Bearer {key}").name == "ann"
    path.rename(tmp_path / "aside")
    for given in (f"Bearer {key}", None):
        with pytest.raises(ApiError, match="missing or not valid"):
            ring.who(given)
    assert ring.holder("") is None
    (tmp_path / "aside").rename(path)  # restored from a copy: all is well again
    assert ring.who(f"Bearer {key}").name == "ann"
    path.unlink()
    path.symlink_to(path)  # a loop: it is there, and nobody can read it
    for other in (ring, Keyring(tmp_path)):
        with pytest.raises(ApiError, match="missing or not valid"):
            other.who(None)
        assert other.holder("") is None
        with pytest.raises(ConfigError, match="cannot be read"):
            other.keys()


def test_a_server_over_tenants_forewords_whose_keys_are_gone_lets_nobody_in_and_does_not_start(tmp_path):
    (tmp_path / "tenants" / "ann").mkdir(parents=True)
    ring = Keyring(tmp_path)
    with pytest.raises(ApiError, match="missing or not valid"):
        ring.who(None)
    for config in (ServeConfig("b", str(tmp_path)), ServeConfig("b", str(tmp_path), open=True)):
        with pytest.raises(ConfigError, match=r"restore keys\.json"):
            check_open(config, ring)
    key = Keyring(tmp_path).add("ann")
    check_open(ServeConfig("b", str(tmp_path)), ring)
    assert ring.who(f"Bearer {key}").name == "ann"


@pytest.mark.parametrize("name", [KEYS_FILE, "Keys.JSON", "tenants", "Tenants"])
def test_no_upload_takes_the_place_of_what_the_store_keeps(backbone, tmp_path, name):
    artefact = save(backbone, tmp_path / "made")
    with serving(backbone, tmp_path / "store", FakeEngine(backbone), FakePool()) as running, running.client() as http:
        refused = http.post("/v1/forewords", data={"name": name}, files=files_of(artefact))
        assert refused.status_code == 409 and repr(name) in refused.json()["error"]["message"]
        assert not (tmp_path / "store" / name).exists()
        assert http.get("/v1/models").status_code == 200  # nobody was locked out


@pytest.mark.parametrize("name", ["", "Ann", "../ann", "a/b", ".ann", "a" * 65])
def test_a_tenant_s_name_is_never_a_path(tmp_path, name):
    with pytest.raises(ConfigError, match="tenant"):
        Keyring(tmp_path).add(name)


def test_the_command_line_makes_lists_and_revokes_keys(tmp_path, capsys):
    from foreword.cli import main

    assert main(["keys", "add", "ann", "--store", str(tmp_path), "--quota", "rows=2", "--grant", "shared"]) == 0
    key = capsys.readouterr().out.strip()
    tenant = Keyring(tmp_path).who(f"Bearer {key}")
    assert (tenant.name, tenant.quota.rows, tenant.grants, tenant.operator) == ("ann", 2, ("shared",), False)
    assert main(["keys", "list", "--store", str(tmp_path)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert main(["keys", "revoke", row["id"], "--store", str(tmp_path)]) == 0
    assert main(["keys", "revoke", row["id"], "--store", str(tmp_path)]) == 2
    assert main(["keys", "add", "ann", "--store", str(tmp_path), "--quota", "row=2"]) == 2
    assert "rows" in capsys.readouterr().err


# ---- who sees what ----
def test_every_route_wants_a_key(world):
    running, keys = world
    with running.client() as http:
        for path in ("/v1/models", "/v1/forewords", "/v1/status", "/metrics", "/v1/files", "/v1/batches"):
            assert http.get(path).status_code == 401, path
        for path in ("/v1/completions", "/v1/chat/completions", "/v1/compare", "/v1/forewords", "/v1/files"):
            assert http.post(path, json={}).status_code == 401, path
        assert http.get("/health").status_code == http.get("/ready").status_code == http.get("/").status_code == 200
    for wrong in (keys["ann"][:-1] + "x", keys["ann"].upper(), "fw-00000000-" + "a" * 43, "x" * 5000):
        with running.client(wrong) as http:
            assert http.get("/v1/models").status_code == 401
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="no", max_retries=0).models.list()


def test_each_key_sees_its_own_and_what_it_is_granted(world):
    running, keys = world
    seen = {}
    for who, key in keys.items():
        with running.client(key) as http:
            seen[who] = [m["id"] for m in http.get("/v1/models").json()["data"]]
    assert seen == {
        "root": [PLAIN, "private", "shared"], "ann": [PLAIN, "anns", "mine", "shared"], "bob": [PLAIN, "mine"]}


def test_the_same_name_is_each_tenant_s_own(world):
    running, keys = world
    texts = set()
    for who in ("ann", "bob"):
        with running.client(keys[who]) as http:
            answer = http.post("/v1/completions", json={"model": "mine", "prompt": "abc"})
            texts.add(answer.json()["choices"][0]["text"])
    assert len(texts) == 2


PROBES = ["anns", "../ann/anns", "ann/anns", "tenants/ann/anns", "tenants", "private", "..%2Fann%2Fanns", "shared", ".",
          ".."]


@pytest.mark.parametrize("name", PROBES)
def test_another_tenant_s_name_is_answered_as_one_that_does_not_exist(world, name):
    running, keys = world
    with running.client(keys["bob"]) as http, running.client(keys["ann"]) as other:
        version = other.get("/v1/forewords/anns").json()["version"]
        for probe in (name, f"{name}@{version}"):
            answers = []
            for model in (probe, "q" * len(probe)):
                asked = http.post("/v1/completions", json={"model": model, "prompt": "abc"})
                answers.append((asked.status_code, asked.text.replace(f"model '{model}'", "NAME")))
            assert answers[0] == answers[1] and answers[0][0] == 404
        if "/" not in name and "%" not in name and not name.startswith("."):
            for method in ("GET", "DELETE"):
                found = [http.request(method, f"/v1/forewords/{n}") for n in (name, "q" * len(name))]
                assert found[0].status_code == found[1].status_code == 404
                other_name = "q" * len(name)
                assert found[0].text.replace(f"'{name}'", "X") == found[1].text.replace(f"'{other_name}'", "X")
                assert dict(found[0].headers).keys() == dict(found[1].headers).keys()


def test_the_time_of_a_404_does_not_tell_whether_another_has_the_name(world):
    """Interleaved, medians of 150: the difference must drown in the noise of one median."""
    running, keys = world
    times: dict[str, list[float]] = {"anns": [], "nono": []}
    with running.client(keys["bob"]) as http:
        for _ in range(150):
            for name, found in times.items():
                begun = time.perf_counter()
                assert http.get(f"/v1/forewords/{name}").status_code == 404
                found.append(time.perf_counter() - begun)
    medians = {name: statistics.median(found) for name, found in times.items()}
    spread = statistics.median(abs(t - medians["nono"]) for t in times["nono"])
    assert abs(medians["anns"] - medians["nono"]) < max(2 * spread, 0.1 * medians["nono"]), medians


def test_a_tenant_s_status_and_metrics_tell_nothing_of_others(world):
    running, keys = world
    with running.client(keys["ann"]) as http:
        http.post("/v1/completions", json={"model": "anns", "prompt": "abc"})
    with running.client(keys["bob"]) as http:
        assert http.get("/metrics").status_code == 403
        text = http.get("/v1/status").text
        assert "ann" not in text and "engine" not in json.loads(text)
    with running.client(keys["root"]) as http:
        assert "ann/anns" in http.get("/v1/status").text and http.get("/metrics").status_code == 200


def test_a_tenant_stores_and_deletes_its_own_only(world, backbone, tmp_path):
    running, keys = world
    artefact = save(backbone, tmp_path / "new", seed=9)
    with running.client(keys["bob"]) as bob, running.client(keys["ann"]) as ann:
        made = bob.post("/v1/forewords", data={"name": "fresh"}, files=files_of(artefact))
        assert made.status_code == 201, made.text
        assert bob.post("/v1/completions", json={"model": "fresh", "prompt": "a"}).status_code == 200
        assert ann.post("/v1/completions", json={"model": "fresh", "prompt": "a"}).status_code == 404
        assert ann.delete("/v1/forewords/fresh").status_code == 404
        assert ann.delete("/v1/forewords/shared").status_code == 404  # granted to use, not to delete
        assert bob.delete("/v1/forewords/fresh").json()["deleted"]
        assert bob.post("/v1/completions", json={"model": "fresh", "prompt": "a"}).status_code == 404


def test_files_and_batches_are_each_tenant_s_own(world):
    running, keys = world
    with running.client(keys["ann"]) as ann, running.client(keys["bob"]) as bob:
        made = ann.post("/v1/files", data={"purpose": "batch"}, files={"file": ("../../x.jsonl", b"{}\n")}).json()
        for path in (f"/v1/files/{made['id']}", f"/v1/files/{made['id']}/content"):
            assert ann.get(path).status_code == 200 and bob.get(path).status_code == 404
        body = {"input_file_id": made["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
        assert bob.post("/v1/batches", json=body).status_code == 404
        batch = ann.post("/v1/batches", json=body).json()
        assert batch["status"] == "failed" and "custom_id" in batch["errors"]["data"][0]["message"]
        assert bob.get(f"/v1/batches/{batch['id']}").status_code == 404
        assert bob.get("/v1/files").json()["data"] == []


# ---- quotas ----
def test_a_minute_s_allowance_refills_and_unused_tokens_come_back():
    now = [0.0]
    limits, tenant = Limits(lambda: now[0]), Tenant("ann", quota=Quota(requests_per_min=60, tokens_per_min=600, rows=2))
    first = limits.admit(tenant, 1, 600)
    with pytest.raises(ApiError, match="tokens a minute") as caught:
        limits.admit(tenant, 1, 100)
    assert caught.value.status == 429 and caught.value.headers["Retry-After"] == "10"
    first.used_tokens = 500
    first.close()
    first.close()
    second = limits.admit(tenant, 1, 100)
    with pytest.raises(ApiError, match="rows = 3"):
        limits.admit(tenant, 2, 1)
    now[0] = 10.0
    third = limits.admit(tenant, 1, 100)
    assert limits.rows_of(tenant) == 2
    second.close(), third.close()
    assert limits.rows_of(tenant) == 0


def test_a_tenant_s_quota_is_its_own(backbone, tmp_path):
    ring = Keyring(tmp_path)
    small = ring.add("small", quota=Quota(requests_per_min=2, forewords=1))
    large = ring.add("large")
    artefact = save(backbone, tmp_path / "tenants" / "small" / "one")
    with serving(backbone, tmp_path, FakeEngine(backbone), FakePool()) as running:
        body = {"model": PLAIN, "prompt": "a"}
        with running.client(small) as http:
            answers = [http.post("/v1/completions", json=body) for _ in range(3)]
            assert [a.status_code for a in answers] == [200, 200, 429]
            assert answers[2].headers["retry-after"] and "allows 2" in answers[2].json()["error"]["message"]
            refused = http.post("/v1/forewords", data={"name": "two"}, files=files_of(artefact))
            assert refused.status_code == 403 and "allows 1" in refused.json()["error"]["message"]
            assert http.post("/v1/forewords", data={"name": "one"}, files=files_of(artefact)).status_code == 201
        with running.client(large) as http:
            assert http.post("/v1/completions", json=body).status_code == 200
