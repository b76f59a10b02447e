"""The hub, through huggingface_hub's own client against a server of the same form on this machine."""

import pytest
import torch
from fake_hub import fake_hub
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

from foreword.artifact import HubAccess, load_prompt, push_prompt, save_prompt
from foreword.artifact.hub import is_hub_id
from foreword.errors import ArtifactError
from foreword.prompts.init import initialise
from foreword.prompts.soft_prompt import make_prompt
from foreword.prompts.spec import InitSpec, PromptSpec


@pytest.fixture(autouse=True)
def _quiet_client(monkeypatch, tmp_path):
    """Give the client a home of its own: no login, no cache and no progress bars of this machine."""
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # the other upload protocol, git-lfs, is the faked one
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    disable_progress_bars()
    yield
    enable_progress_bars()


@pytest.fixture
def hub():
    with fake_hub() as running:
        yield running


@pytest.fixture
def saved(backbone_of, tmp_path):
    backbone = backbone_of("llama")
    prompt = make_prompt(PromptSpec(length=3, reparam="mlp", reparam_width=8), backbone)
    initialise(prompt, backbone, torch.Generator().manual_seed(0), init=InitSpec(name="normal"))
    return save_prompt(prompt, tmp_path / "saved", backbone, scores={"bleu": 45.0})


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")
def test_push_then_load(hub, saved, tmp_path):
    address = push_prompt(saved, "me/polite", private=True, token=hub.token, endpoint=hub.endpoint)
    assert address == f"{hub.endpoint}/me/polite/commit/{hub.commit('me/polite')}"
    assert hub.repos["me/polite"] == {path.name: path.read_bytes() for path in saved.iterdir()}
    assert hub.private["me/polite"]

    access = HubAccess(endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    loaded, kept = load_prompt("me/polite", hub=access, unfolded=True), load_prompt(saved, unfolded=True)
    assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), kept.state_dict().values(), strict=True))
    assert loaded.meta == kept.meta and loaded.fingerprint == kept.fingerprint

    asked = len(hub.asked)
    offline = HubAccess(cache_dir=tmp_path / "cache", local_files_only=True)
    assert load_prompt("me/polite", hub=offline).meta == kept.meta
    assert len(hub.asked) == asked, "the cache alone was enough"
    at = HubAccess(endpoint=hub.endpoint, cache_dir=tmp_path / "cache", revision=hub.commit("me/polite"))
    assert load_prompt("me/polite", hub=at).meta == kept.meta


def test_only_an_artefacts_files_are_fetched(hub, saved, tmp_path):
    hub.repos["me/big"] = {path.name: path.read_bytes() for path in saved.iterdir()}
    hub.repos["me/big"] |= {"model.safetensors": b"0" * 1000, "adapter_model.bin": b"\x80", "run.py": b"exit()"}
    load_prompt("me/big", hub=HubAccess(endpoint=hub.endpoint, cache_dir=tmp_path / "cache"))
    fetched = {line.rsplit("/", 1)[1] for line in hub.asked if line.startswith("GET") and "/resolve/" in line}
    assert fetched == {path.name for path in saved.iterdir()}


def test_pefts_repositories_load(hub, saved, tmp_path):
    hub.repos["me/peft"] = {
        name: (saved / name).read_bytes() for name in ("adapter_config.json", "adapter_model.safetensors")
    }
    prompt = load_prompt("me/peft", hub=HubAccess(endpoint=hub.endpoint, cache_dir=tmp_path / "cache"))
    assert torch.equal(prompt.table("decoder"), load_prompt(saved).table("decoder")) and prompt.fingerprint is None


def test_a_damaged_download_is_noticed(hub, saved, tmp_path):
    files = {path.name: path.read_bytes() for path in saved.iterdir()}
    damaged = bytearray(files["adapter_model.safetensors"])
    damaged[-1] ^= 1
    hub.repos["me/bad"] = {**files, "adapter_model.safetensors": bytes(damaged)}
    with pytest.raises(ArtifactError, match="content digest differs"):
        load_prompt("me/bad", hub=HubAccess(endpoint=hub.endpoint, cache_dir=tmp_path / "cache"))


def test_nothing_damaged_is_published(hub, saved):
    (saved / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot be read"):
        push_prompt(saved, "me/polite", token=hub.token, endpoint=hub.endpoint)
    assert hub.asked == []


def test_the_hubs_refusals_are_one_line(hub, saved, tmp_path):
    access = HubAccess(endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    cases = [
        (lambda: load_prompt("me/none", hub=access), "'me/none' is no directory here and the hub has no such repo"),
        (lambda: push_prompt(saved, "me/polite", token="wrong", endpoint=hub.endpoint), "was not pushed to 'me/pol"),
        (lambda: push_prompt(saved, "polite", token=hub.token, endpoint=hub.endpoint), "not of the form owner/name"),
        (lambda: push_prompt(tmp_path / "no", "me/polite", endpoint=hub.endpoint), "is not a directory; save"),
        (lambda: load_prompt("me/none", hub=HubAccess(cache_dir=tmp_path / "c", local_files_only=True)), "no copy"),
    ]
    hub.repos["me/polite"] = {}
    cases.append((
        lambda: load_prompt("me/polite", hub=HubAccess(endpoint=hub.endpoint, cache_dir=tmp_path / "c", revision="v9")),
        r"the hub answers: .*404",
    ))  # fmt: skip
    for act, message in cases:
        with pytest.raises(ArtifactError, match=message) as caught:
            act()
        assert "\n" not in str(caught.value)


def test_no_network_is_one_line(saved, tmp_path):
    nowhere = HubAccess(endpoint="http://127.0.0.1:9", cache_dir=tmp_path / "cache")
    with pytest.raises(ArtifactError, match=r"'me/polite' is no directory here and the hub cannot be reached"):
        load_prompt("me/polite", hub=nowhere)
    with pytest.raises(ArtifactError, match="was not pushed"):
        push_prompt(saved, "me/polite", token="x", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("source", "expected"),
    [("me/polite", True), ("a/b.c-d_e", True), ("polite", False), ("./me", False), ("/me/x", False), ("a/b/c", False),
     ("../x", False), ("me/", False), ("~/x", False)],
)  # fmt: skip
def test_what_looks_like_a_hub_id(source, expected):
    assert is_hub_id(source) is expected
