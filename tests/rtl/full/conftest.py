"""Prints the table of all comparisons behind the tests."""

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    found = {
        tuple(value)
        for reports in terminalreporter.stats.values()
        for report in reports
        for name, value in getattr(report, "user_properties", ())
        if name == "cycles"
    }
    write = terminalreporter.write_line
    for heading in sorted({row[0] for row in found}):
        rows = sorted(row[1:] for row in found if row[0] == heading)
        write(f"{heading + ': cycles':48}{'RTL':>12}{'model':>12}{'error':>8}")
        for name, rtl, model in rows:
            write(f"  {name:46}{rtl:12,}{model:12,}{model / rtl - 1:8.2%}")
        off = sum(rtl != model for _, rtl, model in rows)
        write(
            f"  {len(rows)} {heading}, {off} off".ljust(48)
            + f"{sum(r[1] for r in rows):12,}{sum(r[2] for r in rows):12,}"
        )
