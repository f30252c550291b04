"""What the processes of a run share: the plan, the user's own code, the state of a block, checkpoints."""
