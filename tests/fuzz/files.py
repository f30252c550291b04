"""What is read from a checkpoint: its manifest, and the blocks' files with a manifest that vouches for them."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lowdimfa.services.run.checkpoint import BlockState, CheckpointStore, write_block
from lowdimfa.services.run.manifest import MANIFEST_FILE, Manifest, export_file
from lowdimfa.services.run.state import boundaries_of
from tests.fuzz.guard import Finding
from tests.fuzz.mutate import change_bytes, change_tree

STEP = 7
BLOCKS = (
    BlockState(
        0, ["a"], {"model/a.weight": torch.ones(2, 3), "optimizer/a.weight/step": torch.tensor(7)}, {}
    ),
    BlockState(
        1, ["b", "c"], {"model/b.weight": torch.ones(3), "head/P": torch.eye(2)}, {"updater": {"numbers": {}}}
    ),
)
_LENGTH_BYTES = 8
_MARK = "0" * 8  # in place of one that is drawn


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """Return a folder of this process with one good checkpoint; it goes when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="lowdimfa-fuzz-")
    store = CheckpointStore(Path(folder.name))
    attempt = store.begin(STEP)._replace(mark=_MARK)
    store.commit(STEP, [write_block(attempt, block) for block in BLOCKS], {"optimizer": "torch.optim.AdamW"})
    return folder


def _checkpoint() -> Path:
    return Path(_folder().name) / "checkpoints" / f"step-{STEP:08d}"


@functools.cache
def _placeholders() -> dict[bytes, bytes]:
    """Return words for what depends on the version of safetensors, so that inputs don't."""
    words = {}
    for path in sorted(_checkpoint().glob("*.safetensors")):
        name = path.stem.removesuffix(f"-{_MARK}")
        words[f"<digest of {name}>".encode()] = hashlib.sha256(path.read_bytes()).hexdigest().encode()
        words[f'"<bytes of {name}>"'.encode()] = str(path.stat().st_size).encode()
    return words


@functools.cache
def _written() -> bytes:
    """Return the manifest that the store wrote, before any other takes its place."""
    return (_checkpoint() / MANIFEST_FILE).read_bytes()


def decode_manifest(data: bytes) -> None:
    """Read a checkpoint whose manifest is this, and everything that a resumed run reads of it."""
    _written()
    for word, value in _placeholders().items():
        data = data.replace(word, value)
    _read(_checkpoint(), data)


def _read(path: Path, manifest: bytes) -> None:
    (path / MANIFEST_FILE).write_bytes(manifest)
    read = Manifest.read(path, STEP)
    shapes, tensors = read.shapes(), read.tensors(lambda name: True)
    boundaries_of(read.entries)
    for name, shape in shapes.items():
        if tuple(tensors[f"model/{name}"].shape) != shape:
            raise Finding(f"{name} has two shapes")
    read.require_same_model(shapes)
    export_file(read, path.parent / "exported.safetensors")


def manifest_seeds() -> Iterator[bytes]:
    """Yield the manifest that the store wrote, and one of its first block alone."""
    text = _written()
    for word, value in _placeholders().items():
        text = text.replace(value, word)
    yield text
    contents = json.loads(text)
    yield json.dumps(
        contents | {"blocks": contents["blocks"][:1], "meta": {"x": [math.inf, None, {}]}}
    ).encode()


def mutate_manifest(data: bytes, draw: random.Random) -> bytes | None:
    """Change one place of the tree."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return _dump(change_tree(tree, draw))


def decode_safetensors(data: bytes) -> None:
    """Read a checkpoint whose one file is this, with a manifest that fits it as far as that can be."""
    path = Path(_folder().name) / "hostile"
    path.mkdir(exist_ok=True)
    (path / f"block-0-{_MARK}.safetensors").write_bytes(data)
    header = _header(data)
    names = [name for name in header if name != "__metadata__"] if isinstance(header, dict) else []
    entry = {"block": 0, "file": f"block-0-{_MARK}.safetensors", "sha256": hashlib.sha256(data).hexdigest()}
    entry |= {"bytes": len(data), "layers": ["a"], "tensors": names, "scalars": {}}
    _read(path, _dump({"format": 1, "step": STEP, "meta": {}, "blocks": [entry]}))


def safetensors_seeds() -> Iterator[bytes]:
    """Yield files as blocks write them: of several types, of none, with empty tensors."""
    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    contents: list[dict[str, torch.Tensor]] = [
        {"model/a.weight": torch.ones(2, 3), "optimizer/a.weight/step": torch.tensor(7)},
        {f"model/{kind}": torch.ones(2, dtype=kind) for kind in kinds},
        {"model/a": torch.ones(0, 3), "model/b": torch.ones(())},
        {},
    ]
    for tensors in contents:
        with tempfile.TemporaryDirectory(prefix="lowdimfa-fuzz-") as folder:
            attempt = CheckpointStore(folder).begin(STEP)
            entry = write_block(attempt, BlockState(0, ["a"], tensors, {}))
            yield (Path(folder) / attempt.folder / entry["file"]).read_bytes()


def mutate_safetensors(data: bytes, draw: random.Random) -> bytes | None:
    """Change one place of the header, with the right length before it, or the bytes behind it."""
    header = _header(data)
    if header is None:
        return None
    rest = data[_LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "little") :]
    how = draw.random()
    if how < 0.2:
        rest = change_bytes(rest, draw)
    elif how < 0.4:
        _change_entry(header, draw)
    else:
        header = change_tree(header, draw)
    text = _dump(header)
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text + rest


_DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "C64")
_DTYPES += ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")


def _change_entry(header: Any, draw: random.Random) -> None:
    """Give a tensor another type or shape, of the same size where that is possible."""
    entries = (
        [entry for entry in header.values() if isinstance(entry, dict)] if isinstance(header, dict) else []
    )
    if not entries:
        return
    entry = draw.choice(entries)
    if draw.random() < 0.5:
        entry["dtype"] = draw.choice(_DTYPES)
    else:
        entry["shape"] = draw.choice(
            ([], [0], [1] * 70, [0, 2**63], [2**40, 0, 2**40], [6], [3, 2], [2**64 - 1, 0])
        )
        if 0 in entry["shape"]:
            entry["data_offsets"] = [draw.choice((0, 8, 24))] * 2


def _header(data: bytes) -> Any:
    length = int.from_bytes(data[:_LENGTH_BYTES], "little")
    try:
        return json.loads(data[_LENGTH_BYTES : _LENGTH_BYTES + length])
    except (ValueError, RecursionError):
        return None


def _dump(tree: Any) -> bytes:
    """Write JSON; half of a pair of code units stays escaped, as only JSON can have it."""
    return json.dumps(tree).encode()
