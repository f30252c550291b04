"""What a run shows of itself: metrics, timelines and the report."""
