"""The trainer of a job: specification to plan, plan to run, run to result."""

import os

# A run says itself, and better, when one of its processes was lost. Ray reads this when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "A worker died or was killed while executing a task")
