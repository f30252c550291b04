"""The trainer of a job: specification to plan, plan to run, run to result."""

import os

# A run says itself, and better, what its processes come to; what Ray knows is in Ray's own logs. This is the pattern of
# lines that Ray is not to print, and Ray reads it when it is imported.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
