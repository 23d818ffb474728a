"""Published figures that the models are held to, one row each, and what is claimed where they agree.

A row that decided a constant says which, and proves nothing by agreeing. Three words say what agreement means:
*verified*, equal to this project's own register transfer code; *validated*, against hardware or register transfer code
of others that no constant was fitted to; *consistent*, where a constant or an assumed figure would agree as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Word = Literal["verified", "validated", "consistent"]
WORDS: tuple[Word, ...] = get_args(Word)
Unit = Literal["cycles", "cycles a step", "ms", "TOPS"]

#: Time on the board over time in the model, of the machine and run that FPT 2020 reports: fitted to its five RNN rows
#: as the geometric mean of the ratios, and used for nothing else. The open register transfer code is a later version.
BOARD_SCALE = 1.098


@dataclass(frozen=True)
class Reference:
    """A published figure: what `workload` takes on `device`, in `unit`.

    `used_for` names the constants that it was used to fit, None where it was used for none. `bound` is the largest
    relative error that will do, None where the figure is only reported. `scale` multiplies the model's time.
    """

    source: str
    device: str
    workload: str
    expected: float
    unit: Unit
    bound: float | None
    word: Word
    used_for: str | None = None
    scale: float = 1.0
    note: str = ""


_NPU = "intel_npu_7t40d40l"
_BOARD = "FPT 2020, Table II"
REFERENCES: tuple[Reference, ...] = tuple(
    Reference(_BOARD, _NPU, f"rnn:{hidden}:256", tops, "TOPS", 0.1, "consistent", "one scale factor", BOARD_SCALE)
    for hidden, tops in ((512, 7.0), (1024, 19.1), (1152, 20.4), (1536, 29.1), (1792, 32.4))
)
