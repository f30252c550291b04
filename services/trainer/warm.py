"""What the processes of a run need, for Ray's workers to import before any of them is told what it becomes."""

from __future__ import annotations

from lowdimfa.services.run.loading import loading

with loading():
    import lowdimfa.services.block.actor
    import lowdimfa.services.trainer.actor
    import lowdimfa.services.trainer.ray_engine  # noqa: F401
