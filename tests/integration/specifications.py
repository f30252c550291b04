"""Small but complete specifications on real digits: one per kind of network."""

from __future__ import annotations

from typing import Any

MODELS: dict[str, dict[str, Any]] = {
    "mlp": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 24, "depth": 4, "classes": 10},
    },
    "cnn": {  # batch norm and dropout: running statistics and random draws must agree too
        "factory": "lowdimfa.models:cnn",
        "args": {"in_channels": 1, "channels": [4, 8, 8], "classes": 10, "image_size": 8, "dropout": 0.1},
    },
    "transformer": {
        "factory": "lowdimfa.models:vit",
        "args": {
            "image_size": 8,
            "patch_size": 4,
            "in_channels": 1,
            "width": 16,
            "depth": 3,
            "heads": 2,
            "classes": 10,
        },
    },
}

SMALL: dict[str, Any] = {
    "model": {
        "factory": "lowdimfa.models:mlp",
        "args": {"in_features": 64, "width": 8, "depth": 2, "classes": 10},
        "blocks": 2,
    },
    "data": {"factory": "lowdimfa.data:digits"},
    "train": {
        "steps": 12,
        "batch_size": 16,
        "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.003}},
        "log_every": 2,
    },
    "run": {"evaluate_every_epochs": 0},
}
"""A run of two blocks that takes next to no time."""


def specification(
    model: str = "mlp", blocks: int = 4, q_rule: str = "hebbian", **sections: Any
) -> dict[str, Any]:
    """Return a specification of a few steps; ``sections`` are merged into its sections."""
    plain: dict[str, Any] = {
        "model": MODELS[model] | {"blocks": blocks},
        "data": {"factory": "lowdimfa.data:digits"},
        "feedback": {"q_rule": q_rule, "probe_every": 2},
        "train": {
            "steps": 8,
            "batch_size": 64,
            "microbatches": 2,
            "optimizer": {"factory": "torch.optim.AdamW", "args": {"lr": 0.003}},
            "scheduler": {"factory": "torch.optim.lr_scheduler.OneCycleLR", "args": {"max_lr": 0.003}},
            "log_every": 2,
        },
        "run": {"liveness_seconds": 30.0, "evaluate_every_epochs": 0},
    }
    for section, values in sections.items():
        plain[section] = plain.get(section, {}) | values
    return plain
