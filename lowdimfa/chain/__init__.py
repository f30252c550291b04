"""The chain form: backpropagation with low-dimensional feedback in place of the transposed weights.

`convert` turns any model into one that learns so (Hanut and Kadmon, arXiv:2502.20580, the paper's main rule in both of
its generations, and the rules that it is compared with); `revert` turns it back. `docs/chain-form.md` says what each
rule does and costs.
"""

from lowdimfa.chain.config import ChainConfig
from lowdimfa.chain.conversion import convert, revert
from lowdimfa.chain.parameters import feedback_parameters, parameter_groups

__all__ = ["ChainConfig", "convert", "feedback_parameters", "parameter_groups", "revert"]
