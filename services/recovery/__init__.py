"""What becomes of a run after a failure: types in, decisions out; clocks, files and processes are the callers'."""
