"""Check in the image's build that torch is of the variant that was asked for: ``check_torch.py cpu|cuda|''``."""

import sys

VARIANTS = ("cpu", "cuda")

variant = sys.argv[1]
if variant and variant not in VARIANTS:
    sys.exit(f"VARIANT is {variant!r}; give {' or '.join(VARIANTS)}, or nothing for any build of torch.")

import torch  # noqa: E402  takes seconds

found = "cpu" if torch.version.cuda is None else "cuda"
if variant and variant != found:
    sys.exit(
        f"VARIANT is {variant}, but pip found torch {torch.__version__}, a {found} build. Put the wheel of torch's "
        f"{variant} build into deploy/docker/wheels, or give the address of an index that has it: "
        "--build-arg TORCH_INDEX=... (with Compose, TORCH_INDEX in the environment)."
    )
