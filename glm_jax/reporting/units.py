"""Numbers as people read them, with their units."""

import datetime
import math

NOTHING = "–"


def number(value: float | None, digits: int = 4) -> str:
    """Significant digits, thousands separated, powers of ten where zeros would be counted."""
    if value is None or not math.isfinite(value):
        return NOTHING
    if value == 0 or (value == int(value) and abs(value) < 1e9):
        return f"{value:,.0f}"
    if not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 2}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


def short(value: float) -> str:
    """For an axis: 2,500,000 is 2.5M."""
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            return f"{value / factor:.3g}{prefix}"
    return f"{value:.3g}"


def amount(value: float | None) -> str:
    """A number with an SI prefix where it is large: 110 M."""
    if value is None or abs(value) < 1e4:
        return number(value)
    text = short(value)
    return f"{text[:-1]} {text[-1]}"


def percent(share: float | None) -> str:
    if share is None:
        return NOTHING
    if 0 < share < 0.0005:
        return "< 0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def size(num_bytes: float) -> str:
    for factor, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.3g} {unit}"
    return f"{num_bytes:.0f} bytes"


def moment(time: float | None) -> str:
    """Unix seconds as date and time."""
    if time is None:
        return NOTHING
    try:
        utc = datetime.datetime.fromtimestamp(time, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return NOTHING
    return f"{utc:%Y-%m-%d %H:%M} UTC"
