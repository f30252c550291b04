"""Decoupled training of PyTorch networks with low-dimensional error feedback (Hanut and Kadmon, arXiv:2502.20580).

The learning library: torch only. A network is cut into blocks; each turns one broadcast, low-dimensional error into
its own update with its own learned feedback weights. Or the layers of any model pass low-dimensional errors back in
place of gradients: `convert`. The distributed runtime is `lowdimfa.services`; `DecoupledTrainer` is its way in.

What it has is loaded when it is first used: commands that train nothing don't wait for torch.
"""

from typing import TYPE_CHECKING

from lowdimfa.on_demand import on_demand
from lowdimfa.version import VERSION

if TYPE_CHECKING:
    from lowdimfa.alignment import Alignment, BlockAlignment, measure_alignment
    from lowdimfa.block import Block
    from lowdimfa.callback import Callback, Run
    from lowdimfa.chain import ChainConfig, convert, feedback_parameters, parameter_groups, revert
    from lowdimfa.chain.rules import ChainRule
    from lowdimfa.config import FactoryConfig, FeedbackConfig, TrainingConfig, UpdateConfig
    from lowdimfa.errors import InputError, LowdimfaError, NotFiniteError
    from lowdimfa.feedback.projection import PRule
    from lowdimfa.feedback.rules import Errors, QRule
    from lowdimfa.head import Broadcast, Evaluation, Head
    from lowdimfa.network import DecoupledNetwork, StepResult, decouple
    from lowdimfa.partitioning import BlockPlan, partition
    from lowdimfa.services.callbacks.early_stopping import EarlyStopping
    from lowdimfa.services.callbacks.mlflow import MLflow
    from lowdimfa.services.callbacks.tensorboard import TensorBoard
    from lowdimfa.services.callbacks.wandb import WandB
    from lowdimfa.services.trainer.api import DecoupledTrainer
    from lowdimfa.services.trainer.results import Result
    from lowdimfa.taps import Tap
    from lowdimfa.tickets import Ticket
    from lowdimfa.trainer import InProcessTrainer

__version__ = VERSION

__all__ = [
    "Alignment",
    "Block",
    "BlockAlignment",
    "BlockPlan",
    "Broadcast",
    "Callback",
    "ChainConfig",
    "ChainRule",
    "DecoupledNetwork",
    "DecoupledTrainer",
    "EarlyStopping",
    "Errors",
    "Evaluation",
    "FactoryConfig",
    "FeedbackConfig",
    "Head",
    "InProcessTrainer",
    "InputError",
    "LowdimfaError",
    "MLflow",
    "NotFiniteError",
    "PRule",
    "QRule",
    "Result",
    "Run",
    "StepResult",
    "Tap",
    "TensorBoard",
    "Ticket",
    "TrainingConfig",
    "UpdateConfig",
    "WandB",
    "convert",
    "decouple",
    "feedback_parameters",
    "measure_alignment",
    "parameter_groups",
    "partition",
    "revert",
]

__getattr__, __dir__ = on_demand(
    __name__,
    {
        "alignment": "Alignment BlockAlignment measure_alignment",
        "block": "Block",
        "callback": "Callback Run",
        "chain": "ChainConfig convert feedback_parameters parameter_groups revert",
        "chain.rules": "ChainRule",
        "config": "FactoryConfig FeedbackConfig TrainingConfig UpdateConfig",
        "errors": "InputError LowdimfaError NotFiniteError",
        "feedback.projection": "PRule",
        "feedback.rules": "Errors QRule",
        "head": "Broadcast Evaluation Head",
        "network": "DecoupledNetwork StepResult decouple",
        "partitioning": "BlockPlan partition",
        "services.callbacks.early_stopping": "EarlyStopping",
        "services.callbacks.mlflow": "MLflow",
        "services.callbacks.tensorboard": "TensorBoard",
        "services.callbacks.wandb": "WandB",
        "services.trainer.api": "DecoupledTrainer",
        "services.trainer.results": "Result",
        "taps": "Tap",
        "tickets": "Ticket",
        "trainer": "InProcessTrainer",
    },
)
