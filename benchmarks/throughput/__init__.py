"""Training speed of blocks with a broadcast error, side by side with pipelines and data parallelism that use gradients."""
