"""Errors for people, and the import paths that a specification may get wrong."""

from __future__ import annotations

import collections
import pickle
from pathlib import Path
from typing import Any

import pytest

from lowdimfa import errors
from lowdimfa.errors import InputError, LowdimfaError, NotFiniteError, error_of
from lowdimfa.imports import call_factory, resolve
from lowdimfa.tickets import Ticket, derive_seed

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LowdimfaError)]
PLAIN = [kind for kind in KINDS if kind is not InputError]


@pytest.mark.parametrize("kind", PLAIN)
def test_errors_survive_pickling_with_their_fields(kind: type[LowdimfaError]) -> None:
    error = kind("the message", block=2, step=7, setting="train.lr")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert str(copy) == copy.message == "the message"
    assert (copy.block, copy.step, copy.setting) == (2, 7, "train.lr")
    assert copy.as_event() == error.as_event()


def test_an_input_error_survives_pickling() -> None:
    error = InputError("spec.yaml: train.lr", "-1", "a positive number", "Try 0.001.")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is InputError
    assert str(copy) == str(error)
    assert copy.as_event() == error.as_event()


def test_a_users_own_subclass_survives_pickling() -> None:
    copy = pickle.loads(pickle.dumps(Overdue("late", step=3)))
    assert type(copy) is Overdue
    assert copy.step == 3


class Overdue(NotFiniteError):
    """An error of a kind that the library doesn't know."""


def test_an_input_error_says_where_what_and_what_to_do() -> None:
    error = InputError("spec.yaml: train.lr", "-1", "a positive number", "Try 0.001.")
    assert str(error) == "spec.yaml: train.lr: found -1; expected a positive number. Try 0.001."
    assert str(InputError("a", "b", "c")) == "a: found b; expected c."
    assert error.exit_code == 2


def test_exit_codes_and_machine_readable_codes_tell_the_kinds_apart() -> None:
    direct = [kind for kind in KINDS if kind.__base__ in (Exception, LowdimfaError)]
    codes = [kind.code for kind in direct]
    assert len(set(codes)) == len(codes)
    for kind in set(KINDS) - set(direct):  # who knows only what it derives from handles it as that
        parent = kind.__base__
        assert parent in KINDS and (kind.code, kind.exit_code) == (parent.code, parent.exit_code)
    assert 0 not in {kind.exit_code for kind in KINDS}
    assert [kind for kind in KINDS if kind.exit_code == 2] == [InputError]


def test_an_event_has_only_the_fields_that_are_known() -> None:
    assert NotFiniteError("no", block=0, step=0).as_event() == {
        "code": "not_finite",
        "class": "NotFiniteError",
        "message": "no",
        "exit_code": 3,
        "block": 0,
        "step": 0,
    }
    assert LowdimfaError("no").as_event() == {
        "code": "internal",
        "class": "LowdimfaError",
        "message": "no",
        "exit_code": 1,
    }


@pytest.mark.parametrize("kind", KINDS)
def test_an_event_leads_back_to_its_error(kind: type[LowdimfaError]) -> None:
    error = kind("a", "b", "c") if kind is InputError else kind("no", block=1, step=7, setting="train.lr")
    copy = error_of({"event": "failed", **error.as_event()})
    assert type(copy) is kind and copy.as_event() == error.as_event()


@pytest.mark.parametrize("event", [{}, {"class": "Mapping"}, {"class": 7}, Overdue("late").as_event()])
def test_an_event_of_another_one_s_making_leads_to_an_error_of_the_project(event: dict[str, Any]) -> None:
    assert type(error_of(event)) in (LowdimfaError, NotFiniteError)


@pytest.mark.parametrize("path", ["collections:OrderedDict", "collections.OrderedDict"])
def test_both_ways_to_write_an_import_path(path: str) -> None:
    assert resolve(path, "key") is collections.OrderedDict


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "an import path such as"),
        ("mlp", "an import path such as"),
        ("lowdimfa.models:", "an import path such as"),
        (":mlp", "an import path such as"),
        ("no_such_package.models:mlp", "ModuleNotFoundError"),
        (".models:mlp", "fails to import"),
        ("lowdimfa.models:no_such_model", "has no such name"),
        ("lowdimfa.version:VERSION", "is not callable"),
    ],
)
def test_an_import_path_that_leads_nowhere_is_refused(path: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolve(path, "model.factory")
    assert str(caught.value).startswith(f"model.factory: found {path!r}")


def test_a_users_module_that_fails_while_it_is_imported_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_user_module.py").write_text("raise KeyError('typo')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"fails to import \(KeyError: 'typo', in .*, line 1\)") as caught:
        resolve("broken_user_module:model", "model.factory")
    assert isinstance(caught.value.__cause__, KeyError)


def test_a_factory_is_called_with_its_arguments() -> None:
    assert call_factory("builtins:dict", {"a": 1}, "key") == {"a": 1}


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        ("lowdimfa.models:mlp", {"in_features": 3}, "TypeError.*missing"),
        (
            "lowdimfa.models:mlp",
            {"in_features": 3, "width": 2, "depth": 0, "classes": 2},
            "ValueError: depth is 0",
        ),
        ("builtins:int", {"x": 1}, "TypeError"),
    ],
)
def test_a_factory_that_fails_is_refused_under_its_key(path: str, args: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call_factory(path, args, "model.factory")
    assert str(caught.value).startswith(f"model.factory: found {path!r}, which fails with arguments {args!r}")


def test_a_factorys_own_refusal_is_passed_on_unchanged() -> None:
    with pytest.raises(InputError) as caught:
        call_factory("lowdimfa.data.synthetic:teacher", {"task": "tokens"}, "data.factory")
    assert str(caught.value).startswith("teacher: task: found 'tokens'")


def test_seeds_depend_on_every_name_and_on_nothing_else() -> None:
    seeds = [
        derive_seed(seed, name, *ticket)
        for seed in (0, 1)
        for name in ("forward", "probe")
        for ticket in (Ticket(0, 0), Ticket(0, 1), Ticket(1, 0), Ticket(0, 11), Ticket(1, 1), Ticket(11, 0))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "forward", 3, 1) == derive_seed(0, "forward", 3, 1)
