"""How fast blocks with a broadcast error train, beside pipelines and data parallelism that use gradients."""
