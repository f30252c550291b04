"""Learning dynamics of two-layer linear networks under low-dimensional error feedback (`docs/theory.md`)."""

from lowdimfa.theory.closed_forms import (
    aligned_start,
    closed_form_modes,
    misalignment,
    mode_strength,
    oja_projector,
)
from lowdimfa.theory.descent import descend
from lowdimfa.theory.flow import Trajectory, integrate, velocity
from lowdimfa.theory.stationary import StationaryPoint, fixed_points, growth_rates, local_growth_rates
from lowdimfa.theory.system import LinearFeedback, LinearState, LinearTask

__all__ = [
    "LinearFeedback",
    "LinearState",
    "LinearTask",
    "StationaryPoint",
    "Trajectory",
    "aligned_start",
    "closed_form_modes",
    "descend",
    "fixed_points",
    "growth_rates",
    "integrate",
    "local_growth_rates",
    "misalignment",
    "mode_strength",
    "oja_projector",
    "velocity",
]
