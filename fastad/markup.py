"""Tables as Markdown and as LaTeX.

Owns their syntax and escaping; what a table holds is `fastad.tables`', HTML is `fastad.page`'s.
Use: `markdown(table)`, `latex(table, "tab:1", table.title)`.
"""

import itertools
from collections.abc import Iterator
from html import escape

from fastad.tables import Row, Table, regime_spans


def markdown(table: Table) -> str:
    """The table as GitHub shows it; what stands below a figure comes on lines of its own within the cell."""
    names = [_joined(lines) for lines in _header(table)]
    lines = [names, ["---", *("---" if column in table.words else "---:" for column, _ in enumerate(names[1:]))]]
    for row in table.rows:
        cells = []
        for column, cell in enumerate(row.cells):
            figure = f"**{escaped(cell.figure)}**" if column in row.best else escaped(cell.figure)
            interval = f" {escaped(cell.interval)}" if cell.interval else ""
            cells.append("<br>".join([figure + interval, *map(escaped, cell.below)]))
        lines.append([escaped(row.label), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _header(table: Table) -> list[tuple[str, ...]]:
    """What stands above each column, from top to bottom."""
    regimes = ("", *table.regimes) if table.regimes else ("",) * len(table.header)
    return [(regime, name) if regime else (name,) for regime, name in zip(regimes, table.header, strict=True)]


def _joined(lines: tuple[str, ...]) -> str:
    return "<br>".join(map(escaped, lines))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is in a table."""
    text = escape(text, quote=False).replace("|", "\\|")
    return text.replace("*", "\\*").replace("_", "\\_")


_LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"},
        **{"<": "$<$", ">": "$>$", "|": r"\textbar{}"},
        **{"±": r"$\pm$", "−": "$-$", "†": r"$^\dagger$", "–": "--", "σ": r"$\sigma$", "γ": r"$\gamma$"},
        **{
            "‖": r"$\Vert$",
            "₁": "$_1$",
            "₂": "$_2$",
            "²": "$^2$",
            "√": r"$\sqrt{}$",
            "×": r"$\times$",
            "…": r"\dots{}",
        },
        **{"“": "``", "”": "''", "’": "'"},
    }
)


# A table of more rows may break over pages.
LONG_FROM = 20


def latex(table: Table, label: str, caption: str) -> str:
    """The table as a LaTeX `table`, or as a `longtable` if it has many rows; needs the packages booktabs and longtable.

    What stands below figures comes in lines of its own.
    """
    head = [" & ".join(map(_tex, table.header)) + r" \\"]
    if spans := regime_spans(table):
        above = " & ".join(("", *(rf"\multicolumn{{{width}}}{{c}}{{{_tex(name)}}}" for name, width in spans)))
        ends = itertools.accumulate((width for _, width in spans), initial=1)
        rules = (rf"\cmidrule(lr){{{first + 1}-{last}}}" for first, last in itertools.pairwise(ends))
        head = [above + r" \\", "".join(rules), *head]
    columns, told = f"l{'r' * (len(table.header) - 1)}", rf"\caption{{{_tex(caption)}}}\label{{{label}}}"
    head, body = [r"\toprule", *head, r"\midrule"], [line for row in table.rows for line in _tex_lines(row)]
    if len(table.rows) >= LONG_FROM:
        first = (told + r" \\", *head, r"\endfirsthead")
        opened = [r"{\small", rf"\begin{{longtable}}{{{columns}}}", *first, *head, r"\endhead"]
        closed = [r"\bottomrule", r"\end{longtable}}"]
    else:
        opened = [r"\begin{table}", r"\centering\small", told, rf"\begin{{tabular}}{{{columns}}}", *head]
        closed = [r"\bottomrule", r"\end{tabular}", r"\end{table}"]
    return "\n".join((*opened, *body, *closed, ""))


def _tex_lines(row: Row) -> Iterator[str]:
    """A row, its figures first, and the lines below them, which no page break parts."""
    if row.is_mean:
        yield r"\midrule"
    figures = [
        (rf"\textbf{{{_tex(cell.figure)}}}" if column in row.best else _tex(cell.figure))
        + (f" {_tex(cell.interval)}" if cell.interval else "")
        for column, cell in enumerate(row.cells)
    ]
    lines = [(_tex(row.label), *figures)]
    for place in range(max(len(cell.below) for cell in row.cells)):
        below = (cell.below[place] if place < len(cell.below) else "" for cell in row.cells)
        lines.append(("", *(rf"{{\scriptsize {_tex(line)}}}" if line else "" for line in below)))
    yield " \\\\*\n".join(map(" & ".join, lines)) + r" \\"
    if len(lines) > 1:
        yield r"\addlinespace"


def _tex(text: str) -> str:
    return text.translate(_LATEX)
