"""Published figures that the models are held to, one row each, and what is claimed where they agree.

A row that decided a constant or a choice says which, and proves nothing by agreeing. What agreement means is a word:
*verified*, equal to this project's own register transfer code; *validated*, against hardware or register transfer code
of others that no constant was fitted to; *consistent*, where a constant or an assumed figure would agree as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from fpgasim.npu.resources import PUBLISHED

Word = Literal["verified", "validated", "consistent"]
WORDS: tuple[Word, ...] = get_args(Word)
Unit = Literal[
    "cycles", "cycles a step", "SDM cycles", "ms", "ms, 34-17 GB/s", "ms, compute alone", "TOPS", "peak TFLOPS",
    "tiles", "cycles off", "ALMs", "M20Ks", "DSPs",
]  # fmt: skip
UNITS: tuple[Unit, ...] = get_args(Unit)

#: Time on the board over time in the model, of the machine and run that FPT 2020 reports: fitted to its five RNN rows
#: as the geometric mean of the ratios, and used for nothing else. The open register transfer code is a later version.
BOARD_SCALE = 1.098


@dataclass(frozen=True)
class Reference:
    """A published figure: what `workload` takes on `device`, in `unit`.

    `bound` is the largest relative error that will do, None where the figure is only reported. `used_for` names the
    constants or the choice that the row was used to fit, None where it was used for none. `scale` multiplies the
    model's time; `added` are cycles that the source gives. `note` says what the figures cover, where that is not plain.
    """

    source: str
    device: str
    workload: str
    unit: Unit
    expected: float
    bound: float | None
    word: Word
    used_for: str | None = None
    scale: float = 1.0
    added: int = 0
    note: str = ""


_NX, _S10, _CNN = "intel_npu_7t40d40l", "bw_s10", "bw_cnn_a10"
_RTL = "github.com/intel/fpga-npu, RTL"
_BOARD = "FPT 2020, Table II"
_ISCA = "ISCA 2018, Table"
_RESTATED = "its published formula, restated and counted fold by fold; the program was not run"
_LEFT_OUT = "by coefficients fitted to the other two engines of the table"
_SIMULATED = (
    "its authors simulated it; of two published sets of latencies, those of the register transfer code and those of "
    "the cycle model, the device has the one that fits"
)
_MLP = {width: "mlp:" + "-".join([str(width)] * 6) for width in (512, 1024)}


def _rtl(workload: str, tops: float, bound: float, fitted: bool) -> Reference:
    word: Word = "consistent" if fitted else "validated"
    return Reference(_RTL, _NX, workload, "TOPS", tops, bound, word, "mvm_latency, start_cycles" if fitted else None)


def _resources(device: str) -> list[Reference]:
    units: tuple[Unit, Unit, Unit] = ("ALMs", "M20Ks", "DSPs")
    p = PUBLISHED[device]
    return [
        Reference(
            f"{_ISCA} III", device, "resources", unit, value, 0.15, "consistent", "form of the formula", note=_LEFT_OUT
        )
        for unit, value in zip(units, (p.alms, p.m20ks, p.dsps), strict=True)
    ]


REFERENCES: tuple[Reference, ...] = (
    *(
        _rtl(f"gemv:{n}:{n}", tops, 0.03, True)
        for n, tops in ((512, 3.55), (1024, 9.70), (1152, 10.39), (1536, 15.06), (1792, 16.90))
    ),
    *(
        _rtl(f"rnn:{n}:8", tops, 0.03, True)
        for n, tops in ((512, 7.47), (1024, 19.84), (1152, 21.10), (1536, 29.91), (1792, 33.12))
    ),
    *(
        _rtl(workload, tops, 0.1, False)
        for workload, tops in (
            ("gru:512:8", 8.41),
            ("gru:1024:8", 21.02),
            ("gru:1152:8", 22.97),
            ("lstm:512:8", 13.29),
            ("lstm:1024:8", 30.0),
            (_MLP[512], 4.32),
            (_MLP[1024], 12.03),
            ("mlp:1024-512-256-256", 3.92),
        )
    ),
    *(
        Reference(_BOARD, _NX, f"rnn:{n}:256", "TOPS", tops, 0.1, "consistent", "one scale", BOARD_SCALE)
        for n, tops in ((512, 7.0), (1024, 19.1), (1152, 20.4), (1536, 29.1), (1792, 32.4))
    ),
    *(
        Reference(_BOARD, _NX, workload, "TOPS", tops, 0.1, "validated", None, BOARD_SCALE)
        for workload, tops in (("gru:1024:256", 20.4), (_MLP[512], 4.3), (_MLP[1024], 12.3))
    ),
    Reference(
        "FCCM 2019, Table V", "intel_4t120d40l", "rnn:1152:256", "ms", 0.210, 0.1, "consistent",
        "choice of latencies", note=_SIMULATED,
    ),
    Reference(
        "FCCM 2019, Table I", "bw_6t400d40l", "lstm:256:150", "ms", 0.107, 0.1, "consistent",
        "choice of latencies", note=_SIMULATED,
    ),
    Reference(f"{_ISCA} V", _S10, "gru:1024:1500", "ms", 3.792, 0.03, "consistent", "gru_floor"),
    Reference(f"{_ISCA} V", _S10, "lstm:256:150", "ms", 0.425, 0.06, "consistent", "lstm_floor"),
    Reference(
        f"{_ISCA} V", _S10, "gru:512:1", "ms", 0.013, None, "consistent",
        note="one call of one step, most of it the start of the call, which cycles leave out",
    ),
    Reference(f"{_ISCA} I", _S10, "gru:2800:50", "cycles a step", 662, 0.1, "consistent"),
    Reference(f"{_ISCA} I", _S10, "lstm:2000:50", "cycles a step", 718, 0.1, "consistent"),
    Reference(
        f"{_ISCA} I", _S10, "conv:28:28:128:128:3:3:1:1", "cycles", 1326, None, "consistent",
        note="of an engine for convolutions that was not published: this one's multipliers take 3,920 at best",
    ),
    Reference(
        f"{_ISCA} I", _S10, "conv:56:56:64:256:1:1:1:0", "cycles", 646, None, "consistent",
        note="as above: 5,227 at best",
    ),
    *(
        Reference(
            f"{_ISCA} I", _S10, workload, "SDM cycles", cycles, bound, "consistent", added=udm,
            note="arithmetic on published figures: operations over 192,000 a cycle, and the cycles of the "
            "unconstrained path; no engine is modelled",
        )
        for workload, cycles, udm, bound in (
            ("lstm:2000:1", 352, 19, 1.01 / 352),  # a cycle more or less
            ("gru:2800:1", 520, 31, 1.01 / 520),
            ("conv:28:28:128:128:3:3:1:1", 1204, 13, 0.015),  # 13 off: published as if without the path
            ("conv:56:56:64:256:1:1:1:0", 549, 13, 1.01 / 549),
        )
    ),
    *(
        Reference(source, device, "peak", "peak TFLOPS", peak, 0.005, "consistent")
        for source, device, peak in (
            (f"{_ISCA} III", "bw_s5", 2.4),
            (f"{_ISCA} III", "bw_a10", 9.8),
            (f"{_ISCA} III", _S10, 48.0),
            ("FPT 2020, Table I", _NX, 40.3),
            ("FCCM 2019, Table III", "intel_4t120d40l", 10.6),
        )
    ),
    Reference("BrainSlice firmware", _CNN, "ResNet-50 without FC", "tiles", 1461, 0.0, "consistent"),
    Reference(
        "IEEE Micro 39(3)", _CNN, "ResNet-50 without FC", "ms, 34-17 GB/s", 1.48, 0.0, "consistent",
        "choice of overlap",
        note="the engine alone, weights loaded as far ahead as the matrix register file has room; tile engines, lanes "
        "and memory are assumed, and the published figure has the transfers from and to the host in it",
    ),
    Reference(
        "IEEE Micro 39(3)", _CNN, "ResNet-50 without FC", "ms, compute alone", 1.48, 0.0, "consistent",
        note="as if all weights were there: a bound from below",
    ),
    Reference(
        f"{_ISCA} VI", _CNN, "ResNet-50 without FC", "ms, 34-17 GB/s", 1.8, None, "consistent",
        note="an earlier figure of the same engine",
    ),
    *(
        Reference("SCALE-Sim", "5 arrays, 3 dataflows", network, "cycles off", 0, 0.0, "consistent", note=_RESTATED)
        for network in ("bvlc_alexnet", "inception_v1", "resnet50", "squeezenet", "vgg19")
    ),
    *(row for device in PUBLISHED for row in _resources(device)),
)  # fmt: skip
