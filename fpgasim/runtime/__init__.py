"""Running plans: `compile` makes a Session, which computes values and time, each without the other."""

from fpgasim.placement.timing import CpuPiece, FpgaSegment, Timing, Transfer, plan_timing
from fpgasim.runtime.sessions import Report, Session, compile

__all__ = ["CpuPiece", "FpgaSegment", "Report", "Session", "Timing", "Transfer", "compile", "plan_timing"]
