"""Every error has an exit code and a gRPC status of its own kind."""

import importlib
import pickle
import pkgutil

import pytest

import fpgasim
from fpgasim.errors import STATUS, FpgasimError, InputError, UnknownNameError, status

GRPC = {"INTERNAL", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNAVAILABLE", "NOT_FOUND", "RESOURCE_EXHAUSTED"}


def error_classes() -> list[type[FpgasimError]]:
    """FpgasimError and all that descend from it, wherever in the package they are defined."""
    for module in pkgutil.walk_packages(fpgasim.__path__, "fpgasim."):
        if "._" not in module.name and not module.name.startswith("fpgasim.torch"):  # PyTorch is not here
            importlib.import_module(module.name)
    found, queue = [], [FpgasimError]
    while queue:
        found.append(queue.pop())
        queue += found[-1].__subclasses__()
    return found


def test_all_errors_stand_in_errors_py() -> None:
    assert {cls.__module__ for cls in error_classes()} == {"fpgasim.errors"}


def test_every_kind_of_error_has_a_row_of_its_own_in_the_table() -> None:
    kinds = {cls for cls in error_classes() if cls is FpgasimError or FpgasimError in cls.__bases__}
    assert set(STATUS) == kinds
    assert {row.grpc for row in STATUS.values()} <= GRPC


def test_exit_codes_are_unique_and_leave_1_and_2_to_others() -> None:
    codes = [row.exit_code for row in STATUS.values()]
    assert len(set(codes)) == len(codes)
    assert all(2 < code < 126 for code in codes)


def test_a_subclass_without_a_row_has_its_parents_status() -> None:
    assert status(UnknownNameError("device", "x", ["y"])) == STATUS[InputError]


@pytest.mark.parametrize("cls", STATUS, ids=lambda cls: cls.__name__)
def test_the_drawing_shows_every_error(cls: type[FpgasimError]) -> None:
    import fpgasim.errors

    assert cls.__name__ in (fpgasim.errors.__doc__ or "")


def test_an_unknown_name_lists_the_known_ones_and_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(UnknownNameError("device", "bw_x", ["bw_s5", "bw_a10"])))
    assert str(error) == "no device 'bw_x'; there are bw_s5, bw_a10"
