"""From text to token files: what is read, where it is cut, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from lowdimfa.data import documents, preparing
from lowdimfa.data.documents import Piece, TextFile, text_files
from lowdimfa.data.preparing import Recipe, divided, prepare
from lowdimfa.data.token_files import Manifest, TokenFile
from lowdimfa.errors import InputError, ResourceError

WORDS = ["the cat", " sat", "\n\non", " the\tmat,", " and — “saw”", " 12 rats.\n", "日本", " <|endoftext|>"]


def texts(number: int = 12) -> list[str]:
    return ["".join(WORDS[(i * j) % len(WORDS)] for j in range(20 + i)) for i in range(number)]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "more").mkdir(parents=True)
    for number, text in enumerate(texts()):
        (folder / ("more" if number > 8 else ".") / f"{number:02}.txt").write_bytes(text.encode())
    return folder


def made(*sources: object, out: Path, **options: Any) -> Manifest:
    manifest, present = prepare(Recipe([str(source) for source in sources], **options), out)
    assert not present
    return manifest


def decoded(folder: Path, split: str) -> list[str]:
    """Return the text of each document of a split, by the tokenizer that lies beside it."""
    manifest, tokenizer = Manifest.read(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))
    file = TokenFile.open(folder, split, manifest.dtype)
    found = []
    for start, end in zip(file.starts, [*file.starts[1:], len(file.tokens)], strict=True):
        own = file.tokens[start:end].tolist()
        found.append(tokenizer.decode([token for token in own if token != manifest.end]))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_documents_come_back_from_their_tokens(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = made(corpus, out=out, vocabulary=300)
    assert manifest.vocabulary == 300 and manifest.dtype == "uint16"
    train, test = decoded(out, "train"), decoded(out, "test")
    assert "".join(train + test) == "".join(texts())
    assert (manifest.train.documents, manifest.test.documents) == (len(train), len(test))
    for part, own in ((manifest.train, train), (manifest.test, test)):
        assert part.bytes == len("".join(own).encode())
    # What a text calls so ends no document.
    tokens = TokenFile.open(out, "train", "uint16").tokens
    assert np.count_nonzero(tokens == manifest.end) <= manifest.train.documents


def test_another_process_makes_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    made(corpus, out=tmp_path / "one", vocabulary=400)
    command = ["-c", "from lowdimfa.services.cli.main import main; main()", "data", "tokens", str(corpus)]
    arguments = [*command, "--out", str(tmp_path / "two"), "--vocabulary", "400", "--format", "json"]
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert json.loads(done.stdout)["train"]["tokens"] == Manifest.read(tmp_path / "one").train.tokens


def test_all_kinds_of_files_have_the_same_documents(corpus: Path, tmp_path: Path) -> None:
    rows = [{"body": text, "n": 1} for text in texts()]
    lines = "\n".join(json.dumps(row) for row in rows).encode()
    (tmp_path / "rows.jsonl").write_bytes(lines + b"\n\n")
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(lines))
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "rows.parquet", row_group_size=5)
    plain = made(corpus / "*.txt", corpus / "**/*.txt", out=tmp_path / "plain", vocabulary=300)
    for name in ("rows.jsonl", "rows.jsonl.gz", "rows.parquet"):
        out = tmp_path / f"out-{name}"
        assert made(tmp_path / name, out=out, vocabulary=300, field="body").train == plain.train


def test_rows_without_text_are_no_documents(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "one "}\n{"text": null}\n{"text": ""}\n{"text": "two"}\n')
    pieces = list(TextFile(tmp_path / "rows.jsonl").pieces())
    assert pieces == [Piece("one ", True, True), Piece("two", True, True)]


def test_each_file_is_taken_once_in_the_order_given(corpus: Path) -> None:
    found = text_files([str(corpus / "05.txt"), str(corpus), str(corpus / "0[0-3].txt")])
    names = [file.path.name for file in found]
    assert names == ["05.txt", *sorted({f"{n:02}.txt" for n in range(12)} - {"05.txt"})]


def test_a_folder_is_taken_whole_through_links_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "corpus", tmp_path / "disk" / "wiki"
    for place in (folder / "own", folder / ".git", elsewhere):
        place.mkdir(parents=True)
        (place / "a.txt").write_text("text")
    (folder / "wiki").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(folder)
    (folder / "once-more").symlink_to(elsewhere)
    found = [file.path.relative_to(folder) for file in text_files([str(folder)])]
    assert found == [Path("once-more/a.txt"), Path("own/a.txt")]
    (folder / "gone.txt").symlink_to(tmp_path / "gone.txt")
    for source in (folder, folder / "*.txt"):
        with pytest.raises(
            InputError, match=r"corpus/gone\.txt: found a link to nothing; expected one to a file"
        ):
            text_files([str(source)])
    (folder / "gone.txt").unlink()
    scandir = os.scandir

    def locked(path: Any) -> Any:
        if Path(path).name == "own":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr("lowdimfa.data.folders.os.scandir", locked)
    with pytest.raises(
        InputError, match=r"corpus/own: found a folder that can't be read \(.*Permission denied"
    ):
        text_files([str(folder)])


def test_a_small_piece_of_a_file_at_a_time_gives_the_tokens_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    text = "So shaken as we are, so wan with care,\n  Find we a time for frighted peace to pant,\n" * 40
    (tmp_path / "long.txt").write_text(text)
    made(tmp_path / "long.txt", out=tmp_path / "whole", vocabulary=320)
    monkeypatch.setattr(documents, "PIECE", 100)
    assert len(list(TextFile(tmp_path / "long.txt").pieces())) > 20
    made(tmp_path / "long.txt", out=tmp_path / "parts", vocabulary=320)
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


@given(st.lists(st.text("ab \n", max_size=30), min_size=1, max_size=12), st.floats(0.02, 0.9))
@settings(max_examples=200)
def test_the_test_split_is_the_end_of_the_text(own: list[str], validation: float) -> None:
    pieces = [Piece(text, True, True) for text in own if text]
    total = sum(len(piece.text) for piece in pieces)
    parted = list(divided(iter(pieces), total, validation))
    assert "".join(piece.text for _, piece in parted) == "".join(own)
    assert [split for split, _ in parted] == sorted((split for split, _ in parted), reverse=True)
    test = "".join(piece.text for split, piece in parted if split == "test")
    wanted = round(total * validation)
    # A tenth more at a document's begin, or up to the blank between two words before the place.
    assert wanted <= len(test) + (wanted == 0) and len(test) <= wanted * 1.1 + 30
    inside = [piece for split, piece in parted if split == "test" and not piece.begins]
    assert len(inside) <= 1


def test_the_test_split_begins_with_a_document_where_one_begins_near() -> None:
    def parted(lengths: list[int], validation: float) -> list[tuple[str, int, bool, bool]]:
        pieces = [Piece("x" * length, True, True) for length in lengths]
        found = divided(iter(pieces), sum(lengths), validation)
        return [(split, len(piece.text), piece.begins, piece.ends) for split, piece in found]

    assert parted([50, 39, 11], 0.1) == [
        ("train", 50, True, True),
        ("train", 39, True, True),
        ("test", 11, True, True),
    ]
    assert parted([100], 0.2) == [("train", 80, True, False), ("test", 20, False, True)]


@pytest.mark.parametrize(("validation", "name"), [(0.01, "test"), (0.99, "train")])
def test_a_text_too_short_for_two_parts_is_refused(validation: float, name: str, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("a short text")
    with pytest.raises(
        InputError, match=f"--validation: found {validation} of 12 characters, .* token for {name}"
    ):
        made(tmp_path / "short.txt", out=tmp_path / "out", vocabulary=300, validation=validation)
    assert not (tmp_path / "out").exists()


def test_what_is_there_already_is_left_and_anything_else_refused(corpus: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", Recipe([str(corpus)], vocabulary=300)
    out.mkdir()  # an empty folder is none
    manifest, _ = prepare(recipe, out)
    before = contents(out)
    assert prepare(recipe, out) == (manifest, True) and contents(out) == before
    with pytest.raises(InputError, match=r"made otherwise .*validation"):
        prepare(Recipe([str(corpus)], vocabulary=300, validation=0.2), out)
    damaged = bytearray(before["train.bin"])
    damaged[5] ^= 1
    (out / "train.bin").write_bytes(damaged)
    with pytest.raises(InputError, match=r"train\.bin: found contents with SHA-256"):
        prepare(recipe, out)
    (out / "train.bin").write_bytes(damaged[:-2])
    with pytest.raises(InputError, match=r"train\.bin: found [0-9,]+ bytes; expected the"):
        Manifest.read(out)
    (corpus / "00.txt").write_text("Other words")
    with pytest.raises(InputError, match=r"train\.bin|sources"):
        prepare(recipe, out)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "letter.txt").write_text("x")
    with pytest.raises(InputError, match="something else than token files"):
        prepare(recipe, tmp_path / "else")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_preparation_leaves_nothing(
    error: BaseException, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "out"

    def interrupted(self: Manifest, folder: Path) -> None:
        assert (folder / "train.bin").is_file()
        raise error

    monkeypatch.setattr(Manifest, "write", interrupted)
    with pytest.raises((KeyboardInterrupt, ResourceError)):
        prepare(Recipe([str(corpus)], vocabulary=300), out)
    assert list(out.parent.iterdir()) == []


def test_a_tokenizer_travels_and_is_read(corpus: Path, tmp_path: Path) -> None:
    made(corpus, out=tmp_path / "first", vocabulary=300)
    (tmp_path / "other.txt").write_text("A cat, a mat and another rat.")
    second = made(
        tmp_path / "other.txt", out=tmp_path / "second", tokenizer=tmp_path / "first", validation=0.4
    )
    assert "".join(decoded(tmp_path / "second", "train") + decoded(tmp_path / "second", "test")) == (
        "A cat, a mat and another rat."
    )
    assert second.vocabulary == 300
    assert contents(tmp_path / "first")["tokenizer.json"] == contents(tmp_path / "second")["tokenizer.json"]


def test_transformers_load_the_folder_as_a_tokenizer(corpus: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    made(corpus, out=tmp_path / "out", vocabulary=300)
    loaded = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    text = texts()[3].replace("<|endoftext|>", "")
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.eos_token_id == Manifest.read(tmp_path / "out").end == 0


def test_large_vocabularies_take_four_bytes() -> None:
    assert [preparing._dtype(size) for size in (2**16, 2**16 + 1)] == ["uint16", "uint32"]


def bad_files() -> Iterator[tuple[str, bytes, str]]:
    yield "latin.txt", "Übergröße".encode("latin-1"), r"latin\.txt: found what is no text \('utf-8'"
    yield "null.txt", b"a\0b", r"null\.txt: found what is no text \(a null"
    yield "empty.txt", b"", "found no text at all"
    yield (
        "broken.txt.gz",
        gzip.compress(b"text" * 99)[:-9],
        r"broken\.txt\.gz: found a file that can't be read",
    )
    yield "no.jsonl", b'{"text": "a"}\n{text}\n', r"no\.jsonl, line 2: found what is no JSON"
    yield "list.jsonl", b"[1]\n", r"list\.jsonl, line 1: found list; expected a JSON object"
    yield "field.jsonl", b'{"body": "a"}\n', r"line 1: found no field 'text', but 'body'.*--field"
    yield "number.jsonl", b'{"text": 3}\n', r"line 1: found int in the field 'text'"
    yield "half.jsonl", b'{"text": "\\ud800"}\n', r"line 1: found what is no text"
    yield "no.parquet", b"PAR1 not", r"no\.parquet: found no Parquet file"


@pytest.mark.parametrize(
    ("name", "content", "message"), list(bad_files()), ids=[name for name, *_ in bad_files()]
)
def test_what_is_no_text_is_refused(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        made(tmp_path / name, out=tmp_path / "out", vocabulary=300)
    assert not (tmp_path / "out").exists()


def test_an_unknown_column_is_refused(tmp_path: Path) -> None:
    parquet.write_table(arrow.Table.from_pylist([{"body": "a", "n": 1}]), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=r"no field 'text', but 'body', 'n'"):
        list(TextFile(tmp_path / "rows.parquet").pieces())
    with pytest.raises(InputError, match=r"row 1: found int in the field 'n'"):
        list(TextFile(tmp_path / "rows.parquet", "n").pieces())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 256}, "--vocabulary: found 256; expected at least 257"),
        ({"vocabulary": 300, "tokenizer": Path("x")}, "none together with --tokenizer"),
        ({"end": "</s>"}, "--end-token.*none without --tokenizer"),
        ({"validation": 1.0}, "--validation: found 1.0"),
        ({"tokenizer": Path("/nowhere")}, "no tokenizer"),
        ({"sources": ["/nowhere/*.txt"]}, "which names nothing"),
        ({"sources": ["$NOT_THERE/a"]}, "NOT_THERE is not set"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: dict[str, Any], message: str, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        prepare(Recipe(**{"sources": [str(corpus)]} | options), tmp_path / "out")


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"x")
    (tmp_path / ".hidden.txt").write_bytes(b"x")
    with pytest.raises(InputError, match=r"a folder without text.*\.jsonl"):
        text_files([str(tmp_path)])


def test_a_tokenizer_has_to_name_what_ends_a_document(corpus: Path, tmp_path: Path) -> None:
    made(corpus, out=tmp_path / "own", vocabulary=300)
    saved = json.loads((tmp_path / "own" / "tokenizer.json").read_text())
    saved["added_tokens"][0]["content"] = "<stop>"
    saved["model"]["vocab"] = {
        ("<stop>" if token == "<|endoftext|>" else token): n for token, n in saved["model"]["vocab"].items()
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(saved))
    with pytest.raises(InputError, match=r"none of <\|endoftext\|>.*--end-token"):
        made(corpus, out=tmp_path / "out", tokenizer=tmp_path / "tokenizer.json")
    assert made(corpus, out=tmp_path / "out", tokenizer=tmp_path, end="<stop>").end == 0
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"no tokenizer \("):
        made(corpus, out=tmp_path / "out2", tokenizer=tmp_path)


def test_a_missing_extra_is_told_in_words(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(InputError, match=r"tokenizers: found a package.*pip install 'lowdimfa\[hf\]'"):
        made(corpus, out=tmp_path / "out")
