"""The fastest settings of a run on the cluster at hand: tried in short segments, chosen by measurement.

The simulator proposes an order, from what the first segments took. What is chosen, and whether it is faster than what
was there, segments decide that take turns. Only the command that tunes imports this room.
"""
