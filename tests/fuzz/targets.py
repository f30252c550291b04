"""The decoders that face the network and the disk, each as one function of the bytes that an attacker chooses.

A decoder returns, or refuses with one of `tests.fuzz.guard.TYPED`; `guarded` says what else it owes. What is decoded
is used as the runtime would use it, as far as that needs no network, so that a refusal that comes too late is found.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tests.fuzz import coordinator, files, specification, wire
from tests.fuzz.mutate import Mutation, mutate_bytes


@dataclass(frozen=True)
class Target:
    """One decoder.

    Attributes
    ----------
    decode
        Takes the bytes.
    seeds
        Valid inputs, made by the project's own encoders.
    mutate
        Changes an input where changes of bytes alone would get stuck in an outer layer; None from it means that the
        input has no such structure.
    modules
        Files whose coverage counts, relative to the root.
    tokens
        Words of the format, for the fuzzer's dictionary.
    """

    decode: Callable[[bytes], Any]
    seeds: Callable[[], Iterator[bytes]]
    modules: Sequence[str]
    mutate: Mutation = mutate_bytes
    tokens: Sequence[bytes] = ()


TARGETS: dict[str, Target] = {
    "errors": Target(
        wire.decode_errors,
        wire.error_seeds,
        (
            "services/stream/frames.py",
            "services/stream/resumable.py",
            "services/stream/broadcast.py",
            "services/rpc/tensors.py",
        ),
        wire.mutate_frames,
    ),
    "activations": Target(
        wire.decode_activations,
        wire.activation_seeds,
        (
            "services/stream/frames.py",
            "services/stream/resumable.py",
            "services/stream/receiver.py",
            "services/rpc/tensors.py",
        ),
        wire.mutate_frames,
    ),
    "handshake": Target(
        wire.decode_handshake, wire.handshake_seeds, ("services/rpc/handshake.py",), wire.mutate_handshake
    ),
    "manifest": Target(
        files.decode_manifest, files.manifest_seeds, ("services/run/manifest.py",), files.mutate_manifest
    ),
    "safetensors": Target(
        files.decode_safetensors,
        files.safetensors_seeds,
        ("services/run/manifest.py",),
        files.mutate_safetensors,
    ),
    "specification": Target(
        specification.decode,
        specification.seeds,
        (
            "services/spec/dialect.py",
            "services/spec/load.py",
            "services/spec/refusals.py",
            "services/spec/expectations.py",
            "services/spec/schema.py",
            "services/spec/learning.py",
            "services/spec/faults.py",
        ),
        specification.mutate,
        specification.TOKENS,
    ),
    "submission": Target(
        coordinator.decode_submission,
        coordinator.submission_seeds,
        ("services/coordinator/submissions.py", "services/coordinator/refusals.py"),
        coordinator.mutate_submission,
    ),
    "event": Target(
        coordinator.decode_event,
        coordinator.event_seeds,
        (
            "services/coordinator/messages.py",
            "services/monitoring/journal.py",
            "services/coordinator/rows.py",
        ),
        coordinator.mutate_event,
    ),
}
