"""Prefix files: content-addressed, whole or not there, and unreadable in any other form."""

import pytest
import torch

from foreword.engines.prefix_files import (
    META,
    digest_of,
    file_name,
    pack_prefix,
    read_head,
    read_layers,
    salt_of,
    write_prefix,
)
from foreword.errors import ArtifactError


def layers(length=4, heads=2, seed=0, count=3):
    draw = torch.Generator().manual_seed(seed)
    return [tuple(torch.randn(length, heads, 8, generator=draw) for _ in "kv") for _ in range(count)]


@pytest.fixture
def written(tmp_path):
    file, content = pack_prefix(layers(), 7, True)
    write_prefix(tmp_path, file, content)
    return tmp_path, file


def test_what_is_written_is_read(written):
    folder, file = written
    assert read_head(folder, file.digest) == file.head
    assert (file.head.length, file.head.layers, file.head.placeholder, file.head.includes_bos) == (4, 3, 7, True)
    for mine, theirs in zip(read_layers(folder, file.digest), layers(), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    assert [path.name for path in folder.iterdir()] == [file.name]


def test_the_name_is_the_content():
    same, other = pack_prefix(layers(), 7, False)[0], pack_prefix(layers(seed=1), 7, False)[0]
    assert same == pack_prefix(layers(), 7, False)[0]
    others = [other, pack_prefix(layers(), 8, False)[0], pack_prefix(layers(), 7, True)[0]]
    assert len({same.digest, *(file.digest for file in others)}) == 4


def test_a_file_under_another_name_or_cut_short_is_refused(written):
    folder, file = written
    content = (folder / file.name).read_bytes()
    (folder / file_name("a" * 64)).write_bytes(content)
    (folder / file_name("b" * 64)).write_bytes(content[:-5])
    (folder / file_name("c" * 64)).write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="not have the content"):
        read_layers(folder, "a" * 64)
    for digest in ("b" * 64, "c" * 64):
        with pytest.raises(ArtifactError, match="export it again"):
            read_head(folder, digest)
    with pytest.raises(ArtifactError, match="not in the prefix directory"):
        read_head(folder, "d" * 64)


@pytest.mark.parametrize("change", [
    {}, {META: "no json"}, {META: "[" * 5000}, {META: '{"format": "x"}'},
    {META: '{"format": "foreword.vllm-prefix", "version": 1, "placeholder": true, "includes_bos": false}'},
])
def test_a_strange_description_is_refused(tmp_path, change):
    import safetensors.torch

    safetensors.torch.save_file({"layer.0.key": torch.ones(1, 1, 1)}, tmp_path / file_name("e" * 64), metadata=change)
    with pytest.raises(ArtifactError):
        read_head(tmp_path, "e" * 64)


def test_layers_that_do_not_fit_together_are_refused():
    good = layers()
    for bad in ([], [*good[:2], layers(length=5)[0]], [(good[0][0], layers(heads=1)[0][1])]):
        with pytest.raises(ArtifactError):
            pack_prefix(bad, 0, False)
    good[1][0][0, 0, 0] = float("nan")
    with pytest.raises(ArtifactError, match="NaN"):
        pack_prefix(good, 0, False)


def test_salts():
    digest = "0123456789abcdef" * 4
    assert digest_of(None) is None and digest_of("someone's own salt") is None
    assert digest_of(salt_of(digest)) == digest_of(salt_of(digest, "0a1b")) == digest
    assert len(salt_of(digest, "f" * 32)) <= 128
    for bad in ("pfx:", "pfx:../x", f"pfx:{digest}:", f"pfx:{digest}x", f"pfx:{digest}:a b", f"pfx:{digest.upper()}"):
        with pytest.raises(ArtifactError):
            digest_of(bad)
