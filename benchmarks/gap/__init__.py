"""The gap to backpropagation of every rule in blocks: ``python -m benchmarks.gap`` runs, stores and judges it."""
