"""What moving activations and errors costs: latency, processor time, memory. Run ``python -m benchmarks.transport``."""
