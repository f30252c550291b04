"""Decoupled training of PyTorch networks with low-dimensional error feedback (Hanut and Kadmon, arXiv:2502.20580).

The learning library: torch only. A network is cut into blocks; each turns one broadcast, low-dimensional error into
its own update with its own learned feedback weights. Or the layers of any model pass low-dimensional errors back in
place of gradients: `convert`. The distributed runtime is the package ``services``.
"""

from lowdimfa.alignment import Alignment, BlockAlignment, measure_alignment
from lowdimfa.block import Block
from lowdimfa.chain import ChainConfig, convert, feedback_parameters, revert
from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
from lowdimfa.errors import InputError, LowdimfaError, NotFiniteError
from lowdimfa.head import Broadcast, Evaluation, Head
from lowdimfa.network import DecoupledNetwork, StepResult, decouple
from lowdimfa.partition import BlockPlan, partition
from lowdimfa.tickets import Ticket
from lowdimfa.trainer import InProcessTrainer
from lowdimfa.version import VERSION

__version__ = VERSION

__all__ = [
    "Alignment",
    "Block",
    "BlockAlignment",
    "BlockPlan",
    "Broadcast",
    "ChainConfig",
    "DecoupledNetwork",
    "Evaluation",
    "FactoryConfig",
    "FeedbackConfig",
    "Head",
    "InProcessTrainer",
    "InputError",
    "LowdimfaError",
    "NotFiniteError",
    "StepResult",
    "Ticket",
    "TrainingConfig",
    "UpdateConfig",
    "convert",
    "decouple",
    "feedback_parameters",
    "measure_alignment",
    "partition",
    "revert",
]
