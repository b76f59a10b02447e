"""Pinned forewords stay pinned whatever happens to their files, and what a tenant is told of rows is about its own."""

import os
import shutil

import pytest
from backbones import make
from fake_engine import FakeEngine, FakePool
from http_kit import PLAIN, save, serving, wait_for

from foreword.artifact.directory import MANIFEST
from foreword.serve.catalog import Catalog
from foreword.serve.ops_api import snapshot
from foreword.serve.pool import Pool
from foreword.serve.request import Request
from foreword.serve.service import Service
from foreword.serve.store_api import check_files, describe
from foreword.serve.tenants import Keyring, Tenant
from foreword.serve.watch import Watch

OPERATOR = Tenant()


@pytest.fixture(scope="module")
def backbone():
    return make("llama")


@pytest.fixture
def service(backbone, tmp_path):
    pool = Pool(backbone)
    save(backbone, tmp_path / "a", seed=1)
    yield Service(backbone, FakeEngine(backbone, pool), pool, Catalog(tmp_path, PLAIN), Keyring(tmp_path), PLAIN)
    pool.close()


def pin(service, name: str = "a"):
    entry = service.find(OPERATOR, name)
    service.pool.pin(entry.id)
    wait_for(lambda: service.pool.info(entry.id).state == "resident")
    return entry


def pinned(service) -> list[str]:
    return [name for name in service.pool.names() if service.pool.info(name).pinned]


def test_a_pinned_foreword_whose_files_are_touched_stays_pinned(service):
    entry = pin(service)
    os.utime(service.store / "a" / MANIFEST)
    assert service.find(OPERATOR, "a").id == entry.id and pinned(service) == [entry.id]
    wait_for(lambda: service.pool.info(entry.id).state == "resident")


def test_a_new_version_of_a_pinned_foreword_takes_the_pin_over(service, backbone):
    old = pin(service)
    save(backbone, service.store / "a", seed=2)
    new = service.find(OPERATOR, "a")
    assert new.id != old.id and pinned(service) == [new.id]


@pytest.mark.parametrize("gap", [False, True], ids=["replaced", "gone for a while"])
def test_a_pin_outlives_a_change_that_only_the_watch_sees(service, backbone, gap):
    old, watch = pin(service), Watch(service, 60)
    if gap:
        shutil.rmtree(service.store / "a")
        assert watch.look()[1] == [old.id]
    save(backbone, service.store / "a", seed=2)
    gone = watch.look()[1]
    new = service.catalog.resolve(OPERATOR, "a").id
    if gap:
        service.find(OPERATOR, "a")
    else:
        assert gone == [old.id]  # and the new one is loaded before anybody asks
    assert service.pool.names() == pinned(service) == [new] != [old.id]


def test_a_damaged_version_of_a_pinned_foreword_does_not_lose_the_pin(service, backbone):
    pin(service)
    (service.store / "a" / MANIFEST).write_text('{"digest": "%s"}' % ("b" * 64))
    assert service.find(OPERATOR, "a").version == "b" * 12
    save(backbone, service.store / "a", seed=2)
    assert service.find(OPERATOR, "a").id in pinned(service)


def test_who_asks_for_an_old_version_does_not_have_it_pinned(service, backbone, tmp_path):
    versions = []
    for seed in (3, 4):
        work = save(backbone, service.catalog.workplace(OPERATOR) / "x", seed=seed)
        versions.append(service.catalog.install(OPERATOR, "b", work, check_files(service, work)))
    pin(service, "b")
    assert service.find(OPERATOR, f"b@{versions[0].version}").id == versions[0].id
    assert pinned(service) == [versions[1].id]


def test_a_foreword_that_became_known_since_the_watch_looked_is_kept(service, backbone):
    stale = service.find(OPERATOR, "a")
    keep = [key for key, entry in service.known().items() if service.catalog.unchanged(entry)]
    save(backbone, service.store / "new", seed=5)
    new = service.find(OPERATOR, "new")
    assert service.forget(keep) == [] and new.id in service.pool.names()
    save(backbone, service.store / "a", seed=6)
    assert service.forget([new.id]) == [stale.id]


def test_a_foreword_that_cannot_be_registered_is_still_the_watch_s_to_forget(service, monkeypatch):
    from foreword.errors import PromptError
    from foreword.serve.faults import ApiError

    entry = service.find(OPERATOR, "a")
    os.utime(service.store / "a" / MANIFEST)

    def refuse(*given, **options):
        raise PromptError("no")

    with monkeypatch.context() as patch:
        patch.setattr(service.pool, "register", refuse)
        with pytest.raises(ApiError):
            service.find(OPERATOR, "a")
    assert Watch(service, 60).look()[1] == [entry.id]
    assert service.pool.names() == []


# ---- whose rows ----
def test_rows_of_a_granted_foreword_are_told_to_those_whose_they_are(backbone, tmp_path):
    save(backbone, tmp_path / "a")
    engine = FakeEngine(backbone, token_sec=0.02)
    ann, bob = (Tenant(name, ("*",), False, key_id=name) for name in ("ann", "bob"))
    with serving(backbone, tmp_path, engine, FakePool()) as running:
        service = running.service
        shared = service.find(ann, "a")
        options = {"max_tokens": 1000, "tenant": "ann"}
        wanted = [Request("abc", shared.id, n=3, **options), Request("abc", n=2, **options)]
        admission, tickets = service.submit(ann, wanted)
        wait_for(lambda: all(ticket.first_token_sec for ticket in tickets))

        def told(tenant: Tenant) -> tuple:
            now = snapshot(service, tenant)
            pool = {row["name"]: row["rows"] for row in now["pool"]["resident"]}
            return now["rows_by_foreword"], now["waiting_or_running"], pool, describe(service, tenant, shared)["rows"]

        assert told(bob) == ({}, 0, {"a": 0}, 0)
        assert told(ann) == ({"a": 3, PLAIN: 2}, 5, {"a": 3}, 3)
        assert told(OPERATOR)[0] == {"a": 3, PLAIN: 2}
        service.finish(admission, tickets)
        assert told(ann) == ({}, 0, {"a": 0}, 0)
