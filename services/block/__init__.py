"""One block of a run: its schedule, its compute thread, its connections, its actor."""
