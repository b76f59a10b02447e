import pytest

from foreword.data.files import data_folder


@pytest.fixture(scope="session")
def public_data():
    folder = data_folder()
    if folder is None or not folder.is_dir():
        pytest.skip("FOREWORD_DATA: no public data here")
    return folder


@pytest.fixture
def own_data(tmp_path, monkeypatch):
    """An empty data folder, and the function that puts a file into it."""
    monkeypatch.setenv("FOREWORD_DATA", str(tmp_path))

    def put(relative, text):
        path = tmp_path / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return put
