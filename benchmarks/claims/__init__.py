"""The paper's claims as benchmarks: ``python -m benchmarks.claims C1 C2`` runs, stores, draws and judges them."""
