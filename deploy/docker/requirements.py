"""Print what the package needs, one requirement a line, with that of some extras: ``requirements.py s3 hf``."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
extras = project["optional-dependencies"]
if unknown := set(sys.argv[1:]) - extras.keys():
    sys.exit(f"EXTRAS has {min(unknown)!r}; there are {', '.join(sorted(extras))}.")
print(*project["dependencies"], *(entry for name in sys.argv[1:] for entry in extras[name]), sep="\n")
