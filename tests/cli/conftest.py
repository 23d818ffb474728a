"""Running the command in this process."""

from collections.abc import Callable

import pytest
from click.testing import CliRunner, Result

from fpgasim.cli import main

Fpgasim = Callable[..., Result]


@pytest.fixture
def fpgasim() -> Fpgasim:
    """Runs `fpgasim ARGS` and gives click's Result; an exception that escapes fails the test."""

    def run(*args: object, exit_code: int = 0, env: dict[str, str] | None = None) -> Result:
        result = CliRunner(env=env).invoke(main, [str(a) for a in args], prog_name="fpgasim")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == exit_code, result.output
        return result

    return run


@pytest.fixture
def refused(fpgasim: Fpgasim) -> Callable[..., str]:
    """Runs `fpgasim ARGS`, which must end with `exit_code` and one line on standard error; gives its message."""

    def run(*args: object, exit_code: int, env: dict[str, str] | None = None) -> str:
        result = fpgasim(*args, exit_code=exit_code, env=env)
        assert result.stderr.count("\n") == 1, result.stderr
        assert result.stderr.startswith("fpgasim: error: ")
        return result.stderr.removeprefix("fpgasim: error: ").rstrip("\n")

    return run
