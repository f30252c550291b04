"""The trainer of a job: specification to plan, plan to run, run to result."""
