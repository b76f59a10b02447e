import functools
import hashlib
import http.server
import threading

import pytest

from foreword.data.download import download
from foreword.errors import DataError

BYTES = b"some rows\n" * 1000
DIGEST = hashlib.sha256(BYTES).hexdigest()


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked = 0

    def log_message(self, *_):
        type(self).asked += 1


@pytest.fixture
def site(tmp_path):
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "rows.csv").write_bytes(BYTES)
    Quiet.asked = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_file_arrives_whole_and_only_once(site, tmp_path):
    path = tmp_path / "deep" / "rows.csv"
    for _ in range(2):
        assert download(f"{site}/rows.csv", DIGEST, path).read_bytes() == BYTES
    assert Quiet.asked == 1
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


def test_a_damaged_copy_is_fetched_again(site, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(BYTES[:-1])
    assert download(f"{site}/rows.csv", DIGEST, path).read_bytes() == BYTES


def test_a_wrong_digest_leaves_what_was_there(site, tmp_path):
    path = tmp_path / "there" / "rows.csv"
    path.parent.mkdir()
    path.write_bytes(b"old")
    with pytest.raises(DataError, match=f"sha256 {DIGEST}"):
        download(f"{site}/rows.csv", "0" * 64, path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["rows.csv"]


def test_unreachable_addresses_are_errors(site, tmp_path):
    with pytest.raises(DataError, match="404"):
        download(f"{site}/none.csv", DIGEST, tmp_path / "x")
    with pytest.raises(DataError, match="cannot download"):
        download("http://127.0.0.1:9/x", DIGEST, tmp_path / "x", timeout_sec=5)
    with pytest.raises(DataError, match="scheme 'ftp'"):
        download("ftp://127.0.0.1/x", DIGEST, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_file_addresses_work(tmp_path):
    (tmp_path / "a").write_bytes(BYTES)
    assert download((tmp_path / "a").as_uri(), DIGEST, tmp_path / "b").read_bytes() == BYTES
