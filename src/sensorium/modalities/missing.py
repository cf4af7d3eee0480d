"""Cells that stand for a missing value among numbers and dates, as common programs write them."""

MISSING_MARKERS = frozenset(
    {
        "",
        "na",
        "n/a",
        "n.a.",
        "<na>",
        "(na)",
        "#na",
        "#n/a",
        "#n/a n/a",
        "#value!",
        "#div/0!",
        "#ref!",
        "#name?",
        "#num!",
        "#null!",
        "nan",
        "-nan",
        "1.#ind",
        "-1.#ind",
        "1.#qnan",
        "nat",
        "null",
        "(null)",
        "none",
        "nil",
        "-",
        "--",
        "---",
        "\u2013",
        "\u2014",
        ".",
        "..",
        "?",
        "missing",
    }
)


def is_missing_marker(cell: str) -> bool:
    """Return whether a cell stands for a missing value."""
    return cell.strip().lower() in MISSING_MARKERS
