"""Every error that fpgasim raises on purpose.

    FpgasimError
    ├── InputError      (also ValueError)   an argument, a feed, a shape, a dtype
    │   └── UnknownNameError                a name that is not among those there are: format, device, backend, network
    ├── FormatError     (also ValueError)   a number format that cannot do what is asked
    ├── ModelError      (also ValueError)   a model file or graph that is broken or unsafe
    ├── WeightsError    (also ValueError)   a checkpoint that is broken, unsafe or does not fit the network
    ├── ImageError      (also ValueError)   an image that cannot be read
    ├── PlacementError                      no plan satisfies the request
    ├── DeviceError     (also ValueError)   a device description, or work that does not fit on the device
    ├── CompileError    (also ValueError)   a segment that no program of the device computes
    ├── ProgramError    (also ValueError)   an instruction program that is broken or that the engine cannot run
    ├── DownloadError   (also OSError)      a file that could not be fetched whole
    └── ServiceError                        a workspace, model, image or service that is not there or not free
        ├── WorkspaceError                  a workspace that cannot be used
        ├── CallError                       a call of a client that failed for good
        ├── ConversionError (also ValueError)  a conversion of a model that failed or has not ended
        └── WebserviceException             Azure's name: an entry that is not there, is in use or cannot do it
            ├── ModelNotFoundException      Azure's name: a model that no entry has
            └── NoAnswer                    a server of this machine that cannot be asked

`STATUS` gives each its exit code of the command line and its gRPC status; a subclass without a row has its parent's.
"""

from collections.abc import Iterable
from typing import NamedTuple


class FpgasimError(Exception):
    """The root: its text is one line that names the thing, its value and what would do."""


class InputError(FpgasimError, ValueError):
    pass


class UnknownNameError(InputError):
    """`UnknownNameError("device", "bw_x", known)` reads "no device 'bw_x'; there are bw_a10, …"."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        super().__init__(f"no {kind} {name!r}; there are {', '.join(self.known)}")

    def __reduce__(self) -> tuple[type["UnknownNameError"], tuple[str, object, tuple[str, ...]]]:
        return type(self), (self.kind, self.name, self.known)


class FormatError(FpgasimError, ValueError):
    pass


class ModelError(FpgasimError, ValueError):
    pass


class WeightsError(FpgasimError, ValueError):
    pass


class ImageError(FpgasimError, ValueError):
    pass


class PlacementError(FpgasimError):
    pass


class DeviceError(FpgasimError, ValueError):
    pass


class CompileError(FpgasimError, ValueError):
    pass


class ProgramError(FpgasimError, ValueError):
    pass


class DownloadError(FpgasimError, OSError):
    pass


class ServiceError(FpgasimError):
    pass


class WorkspaceError(ServiceError):
    pass


class CallError(ServiceError):
    """A call that failed for good: its gRPC status `code` as a word, the `details` that came with it, the `request_id`
    that the server knows it by (None if it did not get there) and how many `attempts` were made."""

    def __init__(self, target: str, code: str, details: str, request_id: str | None, attempts: int, hint: str) -> None:
        self.target, self.code, self.details, self.hint = target, code, details, hint
        self.request_id, self.attempts = request_id, attempts
        notes = [f"request {request_id}"] if request_id else []
        notes += [f"tried {attempts} times"] if attempts > 1 else []
        told = f"{target} answers {code}: {details}" + (f" ({', '.join(notes)})" if notes else "")
        super().__init__(f"{told}; {hint}" if hint else told)

    def __reduce__(self) -> tuple[type["CallError"], tuple[str, str, str, str | None, int, str]]:
        return type(self), (self.target, self.code, self.details, self.request_id, self.attempts, self.hint)


class ConversionError(ServiceError, ValueError):
    pass


class WebserviceException(ServiceError):
    pass


class NoAnswer(WebserviceException):
    """A server of this machine could not be asked, or not now; `timed_out`: it said nothing at all in time."""

    def __init__(self, text: str, timed_out: bool = False) -> None:
        super().__init__(text)
        self.timed_out = timed_out


class ModelNotFoundException(WebserviceException):
    pass


class Status(NamedTuple):
    exit_code: int
    grpc: str


#: Exit code 1 is an unexpected failure and 2 a wrong command line (click's own), so ours begin at 3.
STATUS: dict[type[FpgasimError], Status] = {
    FpgasimError: Status(3, "INTERNAL"),
    InputError: Status(4, "INVALID_ARGUMENT"),
    FormatError: Status(5, "INVALID_ARGUMENT"),
    ModelError: Status(6, "INVALID_ARGUMENT"),
    WeightsError: Status(7, "INVALID_ARGUMENT"),
    ImageError: Status(8, "INVALID_ARGUMENT"),
    PlacementError: Status(9, "FAILED_PRECONDITION"),
    DeviceError: Status(10, "FAILED_PRECONDITION"),
    DownloadError: Status(11, "UNAVAILABLE"),
    ProgramError: Status(12, "INVALID_ARGUMENT"),
    CompileError: Status(13, "FAILED_PRECONDITION"),
    ServiceError: Status(14, "FAILED_PRECONDITION"),
}


def status(error: FpgasimError) -> Status:
    """The exit code and gRPC status of `error`: those of the nearest class in `STATUS`."""
    return next(STATUS[cls] for cls in type(error).__mro__ if cls in STATUS)
