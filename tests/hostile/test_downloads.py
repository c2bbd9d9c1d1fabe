"""What a download leaves under a model's name is said to be what it is, with what to do."""

import pytest

from core.formats.open_model import open_model
from core.system.errors import FileError
from tests.support.small_models import write_model

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4700000000\n"
NO_MODELS = {
    "a pointer": (LFS, "Git LFS pointer", "git lfs pull"),
    "a page": (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page", "download the file itself"),
    "a page in capitals, behind blank lines": (b"\n\n  <HTML><head>", "a web page", "download failed"),
    "an answer": (b'{"error":"Repository not found"}', "a server's error", "Download failed".lower()),
    "an XML answer": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "an XML document", "download failed"),
}


@pytest.mark.parametrize("name", NO_MODELS)
@pytest.mark.parametrize("ending", ["gguf", "apr"])
def test_what_is_no_model_is_named_with_the_way_out(name, ending, tmp_path):
    data, what, repair = NO_MODELS[name]
    path = tmp_path / f"m.{ending}"
    path.write_bytes(data)
    with pytest.raises(FileError) as told:
        open_model(path)
    assert what in str(told.value) and repair in str(told.value)


@pytest.mark.parametrize("keys", [{}, {"split.count": 2, "split.no": 0}])
@pytest.mark.parametrize("padding", [0, 32, 5])
def test_parts_that_were_joined_with_cat_are_named(keys, padding, tmp_path):
    one = write_model(tmp_path / "a.gguf", n_layer=1, d_model=32, keys=keys).read_bytes()
    whole = tmp_path / "m.gguf"
    whole.write_bytes(one + bytes(-len(one) % 32) + one)
    with pytest.raises(FileError) as told:
        open_model(whole)
    assert "second GGUF file behind the first" in str(told.value) and "--merge" in str(told.value)
    plain = write_model(tmp_path / "p.gguf", n_layer=1, d_model=32)
    plain.write_bytes(plain.read_bytes() + bytes(padding))  # zeros behind the last tensor are no second file
    assert open_model(plain).weights


@pytest.mark.parametrize("name,is_piece", [
    ("m.gguf.part1of3", True), ("m.gguf.part01", True), ("m.gguf-split-a", True), ("m.gguf.001", True),
    ("m.gguf.aa", True), ("m.gguf", False), ("model-00001.gguf", False), ("m-q4_1.gguf", False)])
def test_a_piece_of_a_cut_file_is_told_apart_from_a_broken_download(name, is_piece, tmp_path):
    path = write_model(tmp_path / name, n_layer=1, d_model=32)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(FileError) as told:
        open_model(path)
    assert ("join all of them in order" if is_piece else "Copy or download it again") in str(told.value)
