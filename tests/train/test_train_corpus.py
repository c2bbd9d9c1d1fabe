"""From text to shards to batches: what is held out, what comes back, what is refused."""

from __future__ import annotations

import json
import os
import threading

import numpy as np
import pytest

from core.formats.open_model import open_model
from core.system.errors import Cancelled, FileError, UsageError
from core.text.tokenizer import open_tokenizer
from core.train.config import PRESETS
from core.train.data import vocabulary as vocabulary_file
from core.train.data.corpus import find_documents, open_corpus, split
from core.train.data.shards import batch_hash, cut, held_out, make_order, open_shards, permutation
from core.train.data.vocabulary import (
    encoder,
    file_vocabulary,
    padded,
    read_vocabulary,
    train_vocabulary,
    write_vocabulary,
)
from tests.support.builders import write_tiny_gguf
from tests.support.training import write_corpus


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(folder, tmp_path, said=lambda text: None, n_vocab=300):
    return open_corpus(folder, None, n_vocab, None, tmp_path / "spare", said)


def shards_of(folder, *parts, manifest=None):
    folder.mkdir(exist_ok=True)
    for i, ids in enumerate(parts):
        (folder / f"part{i}.bin").write_bytes(np.asarray(ids, "<u4").tobytes())
    if manifest is not None:
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_every_document_is_in_one_part_and_ends_with_the_end_token(tmp_path):
    corpus = opened(write_corpus(tmp_path / "text"), tmp_path)
    end = corpus.vocabulary.end
    parts = {"train": np.concatenate(corpus.shards.train), "val": np.concatenate(corpus.shards.val)}
    texts = {name: set("".join(_text(corpus.vocabulary, ids[:-1])).split("\0")) for name, ids in parts.items()}
    files = {p.read_text() for p in (tmp_path / "text").iterdir()}
    assert texts["train"] | texts["val"] == files and not texts["train"] & texts["val"] and texts["val"]
    assert all(ids[-1] == end for ids in parts.values())


def _text(vocabulary, ids):
    from core.text.bpe import LETTER_BYTES
    for i in ids:
        yield "\0" if i == vocabulary.end else bytes(LETTER_BYTES[c] for c in vocabulary.tokens[i]).decode()


def test_a_second_run_takes_the_shards_that_are_there(tmp_path):
    said = []
    first = opened(write_corpus(tmp_path / "text"), tmp_path, said.append)
    assert any("training a tokenizer" in text for text in said)
    again = []
    second = opened(tmp_path / "text", tmp_path, again.append)
    assert not again and second.vocabulary == first.vocabulary and second.shards.folder == first.shards.folder


def test_changed_text_makes_other_shards(tmp_path):
    first = opened(write_corpus(tmp_path / "text"), tmp_path)
    (tmp_path / "text" / "text00.txt").write_text("something else altogether\n")
    assert opened(tmp_path / "text", tmp_path).shards.folder != first.shards.folder


def test_shards_that_were_damaged_since_are_made_again(tmp_path):
    first = opened(write_corpus(tmp_path / "text"), tmp_path)
    whole = np.concatenate(first.shards.train)
    for damage in (lambda p: p.write_bytes(p.read_bytes()[:-4]), lambda p: p.write_bytes(b"abc")):
        damage(next(first.shards.folder.glob("train-*.bin")))
        said = []
        again = opened(tmp_path / "text", tmp_path, said.append)
        assert np.array_equal(np.concatenate(again.shards.train), whole) and "making shards again" in said[0]


def test_damaged_shards_are_set_aside_where_somebody_keeps_a_file_beside_them(tmp_path):
    folder = opened(write_corpus(tmp_path / "text"), tmp_path).shards.folder
    (folder / "notes.txt").write_text("mine")
    next(folder.glob("train-*.bin")).write_bytes(b"abc")
    assert opened(tmp_path / "text", tmp_path).shards.folder == folder and not (folder / "notes.txt").exists()
    assert (folder.with_name(f"{folder.name}.damaged-1") / "notes.txt").read_text() == "mine"


def test_a_text_that_goes_while_it_is_read_is_an_input_that_is_missing(tmp_path):
    folder = write_corpus(tmp_path / "text")

    def said(text):
        for path in folder.glob("*.txt"):
            path.unlink()

    with pytest.raises(FileError, match=r"text\d+\.txt could not be read: No such file"):
        opened(folder, tmp_path, said)


def test_shards_of_another_tokenizer_are_refused(tmp_path):
    made = opened(write_corpus(tmp_path / "text"), tmp_path)
    other = train_vocabulary(["quite another text " * 9], 300)
    with pytest.raises(UsageError, match="was made with another tokenizer"):
        open_corpus(made.shards.folder, other, 300, None, tmp_path / "spare", print)
    assert open_corpus(made.shards.folder, None, 300, None, tmp_path / "spare", print).vocabulary == made.vocabulary


def test_files_that_are_no_text_are_left_out_and_copies_count_once(tmp_path):
    folder = write_corpus(tmp_path / "text", 3)
    (folder / "picture.bin.png").write_bytes(b"\x89PNG\0\xff")
    (folder / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (folder / "copy.txt").write_text((folder / "text00.txt").read_text())
    (folder / "site-packages").mkdir()
    (folder / "site-packages" / "other.py").write_text("print(1)")
    documents, skipped = find_documents(folder)
    assert len(documents) == 3 and skipped == 2


def test_a_single_file_gives_its_end_to_validation(tmp_path):
    folder = write_corpus(tmp_path / "text", 1)
    train, val = split(find_documents(folder)[0])
    whole = (folder / "text00.txt").read_text()
    assert [d.text() for d in train] == [whole[: len(train[0].text())]]
    assert train[0].text() + val[0].text() == whole and len(val[0].text()) < len(whole) / 4


@pytest.mark.parametrize("make, says", [
    (lambda p: p / "nowhere", "does not exist"), (lambda p: shards_of(p / "empty"), "holds no text"),
])
def test_a_corpus_without_text_is_refused(tmp_path, make, says):
    with pytest.raises(FileError, match=says):
        opened(make(tmp_path), tmp_path)


def test_a_cache_that_cannot_be_written_is_replaced_by_the_run_s_own_folder(tmp_path, monkeypatch):
    (tmp_path / "blocked").write_text("a file")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "blocked"))
    assert opened(write_corpus(tmp_path / "text"), tmp_path).shards.folder.parent == tmp_path / "spare"


def test_the_training_encoder_gives_the_ids_that_a_traced_file_gives(tmp_path):
    file = open_model(write_tiny_gguf(tmp_path / "m.gguf", arch="llama", tokenizer="bpe"))
    vocabulary = file_vocabulary(file)
    for text in ("hello world 12 he'll\n\n  x", "été 日本 a_b(c)", "   "):
        assert encoder(vocabulary)([text])[0] == open_tokenizer(file).encode(text)


def test_a_trained_vocabulary_survives_its_files_and_learns_whole_words(tmp_path):
    made = train_vocabulary(["the stream carries the norm " * 9], 300)
    write_vocabulary(tmp_path, made)
    assert read_vocabulary(tmp_path) == made and "Ġstream" in made.tokens and made.tokens[made.end] == "<|endoftext|>"
    assert train_vocabulary(["the stream carries the norm " * 9], 300) == made


def test_the_training_of_a_vocabulary_can_be_ended_while_it_goes_on(monkeypatch):
    monkeypatch.setattr(vocabulary_file, "TOLD_S", 0.05)
    goes_on = threading.Event()

    def texts():
        goes_on.wait(20)
        yield "the stream "

    def said(text):
        raise Cancelled(text)

    with pytest.raises(Cancelled, match="training a tokenizer of 300 tokens: 0 s"):
        train_vocabulary(texts(), 300, said)
    goes_on.set()


def test_a_text_that_cannot_be_read_ends_the_training_of_a_vocabulary():
    def texts():
        yield "the stream "
        raise FileError("gone")

    with pytest.raises(FileError, match="gone"):
        train_vocabulary(texts(), 300)


@pytest.mark.parametrize("vocab, merges, error, says", [
    ('{"a": 0}', "", FileError, "no token for 255 of the 256 bytes"), ("[1]", "", FileError, "an object was needed"),
    ('{"a": 1}', "", FileError, "does not map"), ("{", "", FileError, "vocab.json and merges.txt"),
])
def test_a_tokenizer_folder_that_is_damaged_is_refused(tmp_path, vocab, merges, error, says):
    (tmp_path / "vocab.json").write_text(vocab)
    (tmp_path / "merges.txt").write_text(merges)
    with pytest.raises(error, match=says):
        read_vocabulary(tmp_path)


def test_a_vocabulary_larger_than_the_model_s_is_refused_and_a_smaller_one_filled(tmp_path):
    made = train_vocabulary(["the stream " * 9], 270)
    n_token = len(made.tokens)
    with pytest.raises(UsageError, match=rf"the tokenizer has {n_token} tokens, the model a vocabulary of 200"):
        padded(made, 200)
    assert len(padded(made, 400).tokens) == 400 and len(set(padded(made, 400).tokens)) == 400


def test_shards_of_the_published_form_open_and_hold_out_their_end(tmp_path):
    folder = shards_of(tmp_path / "s", range(400), range(400, 800), manifest={"documents": 2, "tokens": 800})
    shards = open_shards(folder, 800)
    train, val = (np.concatenate(part) for part in (shards.train, shards.val))
    assert np.array_equal(np.concatenate((train, val)), np.arange(800)) and len(val) == 8


@pytest.mark.parametrize("text", [
    "[]", '{"shards": 5}', '{"shards": [{"file": ["a.bin"]}]}', '{"shards": [{}]}', "[" * 100_000, "\udcff"])
def test_a_manifest_of_another_form_is_refused(tmp_path, text):
    folder = shards_of(tmp_path / "s", range(800))
    (folder / "manifest.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(FileError, match=r"manifest\.json.*Make the shards again"):
        open_shards(folder, 800)


@pytest.mark.parametrize("raw, says", [(b"\0\0\0", "3 bytes; whole u32"), (b"", "0 bytes; whole u32")])
def test_a_shard_of_odd_length_is_refused(tmp_path, raw, says):
    (tmp_path / "a.bin").write_bytes(raw)
    with pytest.raises(FileError, match=says):
        open_shards(tmp_path, 10)


def test_a_shard_that_another_program_cuts_ends_the_training_instead_of_feeding_zeros(tmp_path):
    shards = open_shards(shards_of(tmp_path / "s", range(1, 1000)), 2000)
    order = make_order(shards, 9, seed=1)
    assert order.batch(0, 4).all()
    (path,) = (tmp_path / "s").glob("*.bin")
    os.truncate(path, 400)  # within a page: no signal tells it
    with pytest.raises(FileError, match=r"\.bin became shorter"):
        order.batch(0, 4)


def test_a_token_outside_the_vocabulary_and_a_wrong_manifest_are_refused(tmp_path):
    with pytest.raises(UsageError, match="holds token 799; the model's vocabulary has ids 0 to 299"):
        open_shards(shards_of(tmp_path / "s", range(800)), 300)
    with pytest.raises(FileError, match="says 5 tokens, the shards hold 9"):
        open_shards(shards_of(tmp_path / "t", range(9), manifest={"tokens": 5}), 300)


def test_the_order_gives_each_window_once_an_epoch_and_depends_on_the_seed_alone(tmp_path):
    shards = open_shards(shards_of(tmp_path / "s", range(0, 1000), range(1000, 2000)), 2000)
    order = make_order(shards, 9, seed=1)
    n = len(order.windows)
    epoch = order.batch(0, n)
    assert len({int(row[0]) for row in epoch}) == n and all((np.diff(row.astype(int)) == 1).all() for row in epoch)
    assert np.array_equal(epoch[4:8], make_order(shards, 9, seed=1).batch(4, 4))
    assert not np.array_equal(epoch, make_order(shards, 9, seed=2).batch(0, n))
    assert not np.array_equal(epoch, order.batch(n, n)) and sorted(epoch[:, 0]) == sorted(order.batch(n, n)[:, 0])
    assert np.array_equal(order.batch(n - 1, 2)[1], order.batch(n, 1)[0])  # across the end of an epoch


def test_no_window_is_in_both_parts_or_crosses_a_shard(tmp_path):
    shards = open_shards(shards_of(tmp_path / "s", range(105), range(1000, 1105)), 2000)
    assert cut(shards.train, 9).tolist() == [[0, s] for s in range(0, 100, 10)] + [[1, s] for s in range(0, 100, 10)]
    val = held_out(open_shards(shards_of(tmp_path / "t", range(3000)), 3000), 9, 2)
    train = make_order(open_shards(tmp_path / "t", 3000), 9, 0)
    trained = train.batch(0, len(train.windows))
    assert val.shape == (2, 10) and not set(val.ravel().tolist()) & set(trained.ravel().tolist())


def test_text_too_short_for_a_window_is_refused(tmp_path):
    shards = open_shards(shards_of(tmp_path / "s", range(30)), 100)
    with pytest.raises(UsageError, match="29 training tokens; one window takes 65"):
        make_order(shards, 64, 0)
    with pytest.raises(UsageError, match="holds out 1 tokens"):
        held_out(shards, 8, 4)


def test_a_batch_hash_tells_batches_apart_and_permutations_repeat():
    a = np.arange(12, dtype=np.uint32).reshape(2, 6)
    assert batch_hash(a) == batch_hash(a.copy()) != batch_hash(a[::-1])
    assert np.array_equal(permutation(1, 2, 9), permutation(1, 2, 9)) and PRESETS["tiny"].n_vocab == 2048
