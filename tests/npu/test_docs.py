"""The table of devices in the documentation is the one that the devices give."""

from pathlib import Path

from fpgasim.npu import DEVICES, device_rows

PAGE = Path(__file__).parents[2] / "docs" / "devices.md"


def printed(value: int | float | str) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def table() -> str:
    brainwave = [device for device in DEVICES.values() if device.name in ("bw_s5", "bw_a10", "bw_s10")]
    columns = [device_rows(device) for device in brainwave]
    names = " | ".join(device.name for device in brainwave)
    lines = [f"| field | {names} | unit | source | meaning |", "|---" * (len(columns) + 4) + "|"]
    for rows in zip(*columns, strict=True):
        source = "; ".join(dict.fromkeys(row.source for row in rows))
        values = " | ".join(printed(row.value) for row in rows)
        lines.append(f"| `{rows[0].field}` | {values} | {rows[0].unit} | {source} | {rows[0].meaning} |")
    return "\n".join(lines)


def test_the_page_of_devices_shows_every_field_of_every_preset():
    assert table() in PAGE.read_text(encoding="utf-8"), f"docs/devices.md should have this table:\n{table()}"
