"""Tables as Markdown and as LaTeX.

Owns their syntax and escaping; what a table holds is `fastad.tables`', HTML is `fastad.page`'s.
Use: `markdown(table)`, `latex(table, label="tab:1")`.
"""

import itertools
from html import escape

from fastad.tables import Cell, Table, regime_spans


def markdown(table: Table) -> str:
    """The table as GitHub shows it; what stands below a figure comes on lines of its own within the cell."""
    names = [_joined(lines) for lines in _header(table)]
    lines = [names, ["---", *("---:" for _ in names[1:])]]
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


def latex(table: Table, label: str) -> str:
    """The table as a LaTeX `table` that needs the package booktabs alone."""
    head = [" & ".join((_tex(table.header[0]), *map(_tex, table.header[1:]))) + r" \\"]
    if spans := regime_spans(table):
        above = " & ".join(("", *(rf"\multicolumn{{{width}}}{{c}}{{{_tex(name)}}}" for name, width in spans)))
        ends = itertools.accumulate((width for _, width in spans), initial=1)
        rules = (rf"\cmidrule(lr){{{first + 1}-{last}}}" for first, last in itertools.pairwise(ends))
        head = [above + r" \\", "".join(rules), *head]
    body = []
    for row in table.rows:
        body += [r"\midrule"] * row.is_mean
        cells = (_tex_cell(cell, column in row.best) for column, cell in enumerate(row.cells))
        body.append(" & ".join((_tex(row.label), *cells)) + r" \\")
    return "\n".join(
        (
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{_tex(table.title)}. {_tex(table.note)}}}",
            rf"\label{{{label}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            *head,
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        )
    )


def _tex(text: str) -> str:
    return text.translate(_LATEX)


def _tex_cell(cell: Cell, is_best: bool) -> str:
    figure = rf"\textbf{{{_tex(cell.figure)}}}" if is_best else _tex(cell.figure)
    figure += rf" {_tex(cell.interval)}" if cell.interval else ""
    if not cell.below:
        return figure
    lines = r"\\".join((figure, *(rf"\scriptsize {_tex(line)}" for line in cell.below)))
    return rf"\shortstack[r]{{{lines}}}"
