"""Shows a figure in a notebook so that outputs can be compared, read aloud and kept private."""

import io

import matplotlib.pyplot as plt
from IPython.display import display
from matplotlib.figure import Figure
from PIL import Image

from mmlib.files import checked_name
from mmlib.reporting.style import alt_text, styled

MARK = "mmlib"  # key of our metadata: on a figure its name, on a notebook why it stopped


def show(figure: Figure, name: str, private: bool = False) -> None:
    """Displays a figure as a PNG with alt text and closes it.

    The text form names the figure and describes it without measured numbers, so that
    `pytest --nbval`, which never compares pixels, still sees that the figure is there.

    Args:
        figure: with its alt text as the label, see `mmlib.reporting.style.alt_text`.
        name: of the PNG that a report writes beside its page.
        private: the figure shows data whose licence does not allow passing them on; reports leave
            it out of the page that can be shared.

    Raises:
        ValueError: the figure has no alt text, or the name cannot be part of a file name.
    """
    checked_name(name, "figure name")
    alt = alt_text(figure)
    png = _png(figure)
    plt.close(figure)
    display(
        {"image/png": png, "text/plain": f"[figure: {name} — {alt}]"},
        raw=True,
        metadata={"image/png": {"alt": alt}, MARK: {"name": name, "private": bool(private)}},
    )


@styled
def _png(figure: Figure) -> bytes:
    """The figure with 256 colours: a third of the bytes, and no difference that an eye finds."""
    # The figure's own resolution: matplotlib's default is the one that it was made with.
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=figure.dpi)
    with Image.open(drawn) as image:
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()
