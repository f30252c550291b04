"""What the containers of docker-compose.yml do that needs no container."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
import yaml

COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
NOBODY = 65534


@pytest.mark.parametrize("left", [None, "", "half a tok"])
def test_ray_s_token_is_made_once_also_after_a_first_run_that_was_interrupted(left: str | None) -> None:
    (script,) = yaml.safe_load(COMPOSE.read_text())["services"]["ray-token"]["command"][2:]
    # The container's root is one without capabilities: it can't write to a file of its own that is closed to it.
    user = NOBODY if os.getuid() == 0 else None
    with tempfile.TemporaryDirectory() as folder:
        if left is not None:
            closed = Path(folder, "token.new")
            closed.write_text(left)
            closed.chmod(0o400)
        if user is not None:
            for path in (Path(folder), *Path(folder).iterdir()):
                os.chown(path, user, user)
        command = ["sh", "-ec", script.replace("/run/lowdimfa/ray", folder)]
        tokens = set()
        for _ in range(2):
            subprocess.run(command, check=True, user=user, timeout=60)
            tokens.add(Path(folder, "token").read_text())
        assert [path.name for path in Path(folder).iterdir()] == ["token"]
        assert Path(folder, "token").stat().st_mode & 0o777 == 0o400
    (token,) = tokens
    assert len(token) == 64 and int(token, 16)
