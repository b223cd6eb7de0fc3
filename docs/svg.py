"""Boxes, arrows and wrapped text as SVG, positioned by hand in pixels, without dependencies."""

from dataclasses import dataclass, field
from html import escape

FONT = "Helvetica, Arial, 'Liberation Sans', sans-serif"
INK, MUTED, LINE = "#1b2430", "#5b6675", "#8a94a3"
FILLS = {
    "plain": "#ffffff",
    "blue": "#e3edfb",
    "green": "#e2f3e6",
    "amber": "#fbf0d9",
    "violet": "#ece6f9",
    "grey": "#eef1f4",
}
EDGES = {
    "plain": "#8a94a3",
    "blue": "#4c7bc0",
    "green": "#4a9a5c",
    "amber": "#c08a2b",
    "violet": "#7d62b8",
    "grey": "#8a94a3",
}
_NARROW, _WIDE = set("iljtfrI.,:;'|!() "), set("mwMWABCDEGHKNOPQRSUVXYZ_@%&")


def text_width(text: str, size_px: float, *, bold: bool = False) -> float:
    """Estimate the width of a line in pixels, a little on the wide side."""
    units = sum(0.37 if char in _NARROW else 0.8 if char in _WIDE else 0.62 for char in text)
    return units * size_px * (1.1 if bold else 1.0)


def wrap(text: str, width_px: float, size_px: float) -> list[str]:
    """Break a text into lines that fit a width; newlines in the text are preserved."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and text_width(longer, size_px) > width_px:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle; its sides are where arrows end."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width, self.y + self.height / 2

    @property
    def left(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def top(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height


@dataclass(slots=True)
class Drawing:
    """An SVG under construction."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(
        self, x: float, y: float, text: str, *, size_px: float = 13, bold: bool = False, colour: str = INK,
        anchor: str = "start",
    ) -> None:  # fmt: skip
        """Write one line; y is its baseline."""
        weight = ' font-weight="700"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size_px:g}" fill="{colour}" text-anchor="{anchor}"{weight}>'
            f"{escape(text, quote=False)}</text>"
        )

    def box(
        self, x: float, y: float, width: float, height: float, title: str, body: str = "", *, fill: str = "plain",
        size_px: float = 12, dashed: bool = False,
    ) -> Box:  # fmt: skip
        """Draw a rectangle with a bold title and a wrapped body, and return it.

        Raises:
            ValueError: the text does not fit.
        """
        self.rectangle(x, y, width, height, fill=fill, dashed=dashed)
        text_width_px = width - 20
        rows = [(line, True, size_px + 1) for line in wrap(title, text_width_px / 1.1, size_px + 1)] if title else []
        rows += [(line, False, size_px) for line in wrap(body, text_width_px, size_px)] if body else []
        step = size_px * 1.36
        if len(rows) * step + 10 > height or any(text_width(t, s, bold=b) > width - 8 for t, b, s in rows):
            raise ValueError(f"box {title!r} of {width} x {height} px is too small: {len(rows)} lines")
        top = y + (height - len(rows) * step) / 2 + size_px
        for index, (line, bold, size) in enumerate(rows):
            colour = INK if bold else MUTED
            if body:
                self.text(x + 10, top + index * step, line, size_px=size, bold=bold, colour=colour)
            else:
                self.text(x + width / 2, top + index * step, line, size_px=size, bold=bold, anchor="middle")
        return Box(x, y, width, height)

    def rectangle(
        self, x: float, y: float, width: float, height: float, *, fill: str = "plain", dashed: bool = False
    ) -> Box:
        """Draw a rectangle without text and return it."""
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="7" fill="{FILLS[fill]}" '
            f'stroke="{EDGES[fill]}" stroke-width="1.2"{dash}/>'
        )
        return Box(x, y, width, height)

    def arrow(self, *points: tuple[float, float], label: str = "", at: tuple[float, float] | None = None,
              dashed: bool = False) -> None:  # fmt: skip
        """Draw a polyline with an arrow head at its end; the label is at `at`, or above the middle of the line."""
        path = " ".join(f"{'M' if i == 0 else 'L'}{x:g} {y:g}" for i, (x, y) in enumerate(points))
        dash = ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{path}" fill="none" stroke="{LINE}" stroke-width="1.6"{dash} marker-end="url(#head)"/>'
        )
        if label:
            x, y = at or ((points[0][0] + points[1][0]) / 2, points[0][1] - 6)
            self.text(x, y, label, size_px=11, colour=MUTED, anchor="middle")

    def svg(self) -> str:
        """Return the whole file."""
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="{FONT}" role="img">\n<title>{escape(self.title)}</title>\n'
            '<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
            f'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="{LINE}"/></marker></defs>\n'
            f'<rect width="{self.width}" height="{self.height}" fill="#fbfcfd"/>\n'
        )
        return head + "\n".join(self.parts) + "\n</svg>\n"
