"""Our results beside published ones, where they may stand there."""

from IPython.display import Markdown, display

from mmlib.reporting.comparison import published_figure
from mmlib.reporting.display import show
from mmlib.reporting.published import TRAPS, why_not_published
from mmlib.reporting.tables import published_table, reference_table


def published_section(results: list[dict]) -> None:
    """Displays the published Flickr8k figures, with ours among them if data, split and protocol agree.

    Otherwise the published figures stand alone, under a sentence saying why ours do not.

    Args:
        results: `results.json` of each run, oldest phase first.
    """
    reasons = [reason for result in results if (reason := why_not_published(result))]
    if reasons:
        display(Markdown(f"Our results do not stand in this table: {reasons[0]}"))
        display(published_table())
    else:
        show(published_figure(results), "published")
        display(published_table(results))
        display(Markdown("The reference experiment, under its own protocol and the standard one:"))
        display(reference_table(results))
    display(Markdown("Traps of these figures:\n\n" + "\n".join(f"- {trap}" for trap in TRAPS)))
