"""What the processes of a run need, for Ray's workers to import before any of them is told what it becomes."""

from __future__ import annotations

import os

from lowdimfa.services.run.loading import loading

# Libraries read it when they are loaded. Ray sets it too, by an actor's CPUs, but only when that begins.
is_set = "OMP_NUM_THREADS" in os.environ
os.environ.setdefault("OMP_NUM_THREADS", "1")

with loading():
    import lowdimfa.services.block.actor
    import lowdimfa.services.trainer.actor
    import lowdimfa.services.trainer.ray_engine  # noqa: F401

if not is_set:
    del os.environ["OMP_NUM_THREADS"]
