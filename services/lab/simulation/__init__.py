"""A discrete-event model of training in blocks: what a cluster would do that is not at hand.

It needs neither Ray nor a network nor weights: computations are durations, messages are numbers of bytes. The method's
own order of work is not modelled but used: the same `lowdimfa.services.block.schedule.Schedule` that drives a block in
a run.
"""
