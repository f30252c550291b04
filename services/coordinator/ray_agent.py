"""The coordinator's hand in a Ray cluster: a process of its own, told what to do by JSON lines.

Ray ends a process that has lost its cluster, and some of its calls have no deadline. So the coordinator has a process
that may be ended at any time: ``python -m lowdimfa.services.coordinator.ray_agent ADDRESS LIVENESS`` reads one request
a line from its standard input, ``{"call": …, "arguments": {…}}``, and answers each with one line, ``{"answer": …}`` or
``{"error": …}``. It leaves when its standard input ends. Trainers are detached actors, which nothing of that touches.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

import ray
from ray.exceptions import RayError

from lowdimfa.errors import LowdimfaError
from lowdimfa.services.coordinator.runner import AgentCall, Condition
from lowdimfa.services.run.user_code import UserCode
from lowdimfa.services.spec.load import indexed
from lowdimfa.services.trainer.actor import TrainerActor
from lowdimfa.services.trainer.cluster import start_ray
from lowdimfa.services.trainer.placement import free_places
from lowdimfa.services.trainer.request import RunRequest

NAMESPACE = "lowdimfa"
"""Ray namespace of the named actors."""


class RayAgent:
    """Carries out calls in a cluster.

    Parameters
    ----------
    address
        Of the cluster.
    liveness
        Seconds after which an answer is no longer waited for.
    """

    def __init__(self, address: str, liveness: float) -> None:
        self._liveness = liveness
        self._known: dict[str, Any] = {}
        start_ray(address, liveness=liveness, namespace=NAMESPACE)

    def capacity(self) -> dict[str, float]:
        """Return cores and GPUs of the cluster, in all and free."""
        total, free = ray.cluster_resources(), ray.available_resources()
        return {
            "cpus": total.get("CPU", 0.0),
            "gpus": total.get("GPU", 0.0),
            "free_cpus": free.get("CPU", 0.0),
            "free_gpus": free.get("GPU", 0.0),
        }

    def start(self, trainer: str, request: dict[str, Any]) -> None:
        """Make a trainer, unless there is one of that name, and let it run; it runs once however often it is told."""
        code = UserCode(**request.pop("user_code"))
        request["specification"] = indexed(request["specification"])
        actor = TrainerActor.options(
            name=trainer, namespace=NAMESPACE, lifetime="detached", get_if_exists=True
        ).remote()
        self._known[trainer] = actor
        actor.fit.remote(RunRequest(**request, user_code=code))

    def look(self, trainers: list[str]) -> dict[str, Any]:
        """Say of each trainer whether it lives, and how it ended."""
        asked = {}
        for trainer in trainers:
            actor = self._actor(trainer)
            if actor is not None:
                asked[trainer] = actor.outcome.remote()
        ready: set[Any] = set()
        if asked:
            done, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=self._liveness / 6)
            ready = set(done)
        return {
            trainer: self._seen(asked[trainer], ready)
            if trainer in asked
            else {"condition": Condition.lost, "outcome": None}
            for trainer in trainers
        }

    def _seen(self, reference: Any, ready: set[Any]) -> dict[str, Any]:
        if reference not in ready:
            return {"condition": Condition.silent, "outcome": None}
        try:
            outcome = ray.get(reference, timeout=self._liveness)
        except RayError:
            return {"condition": Condition.lost, "outcome": None}
        return {"condition": Condition.alive if outcome is None else Condition.ended, "outcome": outcome}

    def stop(self, trainer: str, now: bool) -> None:
        """Ask a trainer to end after a checkpoint, or end it."""
        actor = self._actor(trainer)
        if actor is None:
            return
        if now:
            ray.kill(actor)
            free_places(trainer)
        else:
            actor.stop.remote()

    def release(self, trainer: str) -> None:
        """End what is left of a trainer."""
        self.stop(trainer, now=True)
        free_places(trainer)  # of one that was lost, too
        self._known.pop(trainer, None)

    def _actor(self, trainer: str) -> Any:
        if trainer not in self._known:
            try:
                self._known[trainer] = ray.get_actor(trainer, namespace=NAMESPACE)
            except ValueError:  # Ray's word for: there is none
                return None
        return self._known[trainer]


CALLS: dict[AgentCall, Callable[..., Any]] = {
    "capacity": RayAgent.capacity,
    "start": RayAgent.start,
    "look": RayAgent.look,
    "stop": RayAgent.stop,
    "release": RayAgent.release,
}


def serve(agent: Callable[[], RayAgent], requests: TextIO, answers: TextIO) -> None:
    """Answer requests until there are no more; the first answer says whether the cluster was reached."""
    try:
        hand = agent()
    except (LowdimfaError, RayError, OSError, RuntimeError) as error:
        _say(answers, {"error": _reason(error)})
        return
    _say(answers, {"answer": None})
    for line in requests:
        request = json.loads(line)
        try:
            reply = {"answer": CALLS[request["call"]](hand, **request["arguments"])}
        except (RayError, OSError, RuntimeError, TimeoutError) as error:
            reply = {"error": _reason(error)}
        _say(answers, reply)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _say(answers: TextIO, reply: dict[str, Any]) -> None:
    answers.write(json.dumps(reply) + "\n")
    answers.flush()


def main() -> None:
    """Serve the parent process."""
    # Whatever Ray prints must not stand between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    address, liveness = sys.argv[1:]
    serve(lambda: RayAgent(address, float(liveness)), sys.stdin, answers)
    ray.shutdown()


if __name__ == "__main__":
    main()
