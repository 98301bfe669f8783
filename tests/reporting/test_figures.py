"""Figures: labelled axes, what is drawn where, alt text, and refusals."""

import re

import matplotlib
import numpy as np
import pytest
import reporting_samples as samples
from matplotlib.figure import Figure

from mmlib.reporting import gallery_figures, loss_curves, lr_curve, recall_curves, results_figure
from mmlib.reporting.gallery import slots_figure
from mmlib.reporting.published import published_figure
from mmlib.reporting.style import DIRECTIONS, figure_png, show


@pytest.fixture(scope="module")
def figures(history, result, gallery) -> dict[str, Figure]:
    galleries = gallery_figures(gallery, result)
    return {
        "loss": loss_curves(history, "shapes", batch_size=64),
        "recall": recall_curves(history, "shapes"),
        "lr": lr_curve(history),
        "results": results_figure([result, samples.result("demo-continue", 0.9)]),
        "published": published_figure([samples.flickr_result()]),
        "gallery-t2i": galleries["t2i"],
        "gallery-i2t": galleries["i2t"],
        "slots": slots_figure(samples.slots(), result),
    }


def texts(figure: Figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


@pytest.mark.parametrize("name", ["loss", "recall", "lr", "results", "published", "slots"])
def test_every_plotted_axis_is_labelled(figures, name):
    for axes in figures[name].axes:
        if axes.axison:
            assert axes.get_xlabel()
            shared = axes.get_shared_y_axes().get_siblings(axes)  # named at the leftmost alone
            assert any(a.get_ylabel() or any(t.get_text() for t in a.get_yticklabels()) for a in shared)


def test_alt_text_says_what_is_drawn_and_measures_nothing(figures):
    for figure in figures.values():
        alt = figure.get_label()
        assert len(alt) > 40
        # K of R@K, "Flickr8k" and phase numbers are names; nothing else may change with a measurement.
        assert not re.search(r"\d", re.sub(r"recall at [\d, ]+|Flickr8k|flickr8k|phase \d|shapes", "", alt))


@pytest.mark.parametrize("name", ["recall", "results", "gallery-t2i", "gallery-i2t"])
def test_titles_give_data_set_split_protocol_and_n(figures, name):
    shown = texts(figures[name]).replace("\n", " ")
    for part in ("shapes", "split", "protocol standard", "60 image and 180 caption queries"):
        assert part in shown


def test_directions_differ_in_more_than_colour():
    assert DIRECTIONS["i2t"]["linestyle"] == "-" != DIRECTIONS["t2i"]["linestyle"]
    assert DIRECTIONS["i2t"]["marker"] != DIRECTIONS["t2i"]["marker"]


def test_curves_show_both_phases_their_border_and_the_values(figures, history):
    axes = figures["loss"].axes[0]
    line = axes.lines[0]
    assert list(line.get_xdata()) == [row["epoch"] for row in history]
    assert list(line.get_ydata()) == [row["train_loss"] for row in history]
    assert [6.5, 6.5] in [list(other.get_xdata()) for other in axes.lines]
    assert "phase 2 · demo-continue" in texts(figures["loss"])
    assert "guessing, ln 64" in texts(figures["loss"])
    assert list(figures["lr"].axes[0].lines[0].get_ydata())[5:7] == [0.01, 0.005]


def test_recall_is_drawn_in_percent_with_band_chance_and_best_epochs(figures, history):
    axes = figures["recall"].axes[0]
    expected = [100 * row["val"]["i2t"]["r1"]["value"] for row in history]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected)
    assert len(axes.collections) == 2  # a band a direction
    chance = 100 * history[0]["val"]["i2t"]["r1"]["chance"]
    assert any(np.allclose(line.get_ydata(), chance) for line in axes.lines)
    stars = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "*"]
    best = [max(part, key=lambda row: row["val"]["rsum"])["epoch"] for part in (history[:6], history[6:])]
    assert stars == [*best, *best]


def test_one_epoch_is_enough(history):
    assert texts(recall_curves(history[:1], "shapes"))
    assert loss_curves(history[:1], "shapes").axes[0].lines[0].get_marker() == "o"


@pytest.mark.parametrize("draw", [loss_curves, recall_curves])
def test_an_empty_history_is_an_error(draw):
    with pytest.raises(ValueError, match=r"history is empty: expected at least one finished.*status.json"):
        draw([], "shapes")


def test_an_unknown_metric_for_the_best_epoch_is_an_error(history):
    with pytest.raises(ValueError, match=r"best by 'acc': expected a metric of the validation summary"):
        recall_curves(history, "shapes", best_by="acc")


def test_hits_are_ticked_and_captions_are_drawn_as_they_are(figures):
    assert texts(figures["gallery-t2i"]).count("✓ match") == 2
    assert "$red$" in texts(figures["gallery-t2i"])
    assert texts(figures["gallery-i2t"]).count("2  ✓") == 2
    assert "first match: rank 23" in texts(figures["gallery-i2t"])


def test_slots_are_sorted_and_their_words_named(figures):
    heights = [bar.get_height() for bar in figures["slots"].axes[0].patches]
    assert heights == sorted(heights, reverse=True)
    assert sum(heights) == pytest.approx(100)
    assert "red ×3.20,  circle ×2.10" in texts(figures["slots"])


def rows_of(figure) -> list[str]:
    """Tick labels and the titles between them, from the top."""
    axes = figure.axes[0]
    labels = {y: label.get_text() for y, label in zip(axes.get_yticks(), axes.get_yticklabels())}
    labels |= {text.get_position()[1]: text.get_text() for text in axes.texts}
    return [labels[y] for y in sorted(labels)]


def test_ours_stands_in_the_group_of_its_pretraining(figures):
    labels = rows_of(figures["published"])
    ours = labels.index("flickr8k-continue")
    assert labels[ours - 1] == "pretrained on nothing: neither side pretrained"
    assert "CLIP B/32, OpenAI" not in labels  # its R@1 was not published
    other = samples.flickr_result() | {"pretraining": "DINOv2"}
    assert "ours, pretrained: DINOv2" in rows_of(published_figure([other]))


def test_a_long_pretraining_takes_no_room_from_the_dots():
    long = {"pretraining": "image: timm:" + "a_long_model " * 20 + "; text: hf:" + "another " * 20}
    figure = published_figure([samples.flickr_result() | long])
    figure.canvas.draw()
    assert figure.axes[0].get_position().width > 0.6
    edge = figure.bbox.x1
    assert all(text.get_window_extent().x1 <= edge for text in figure.axes[0].texts)


def test_results_of_different_data_are_never_put_side_by_side(result):
    other = samples.result("other", data=samples.DATA | {"fingerprint": "feed"})
    with pytest.raises(ValueError, match=r"'demo-train' and 'other' cannot be compared.*fingerprint differs"):
        results_figure([result, other])
    with pytest.raises(ValueError, match="at least one run, found none"):
        results_figure([])
    with pytest.raises(ValueError, match=r"no result under protocol 'folds', only under 'standard'"):
        results_figure([result], protocol="folds")


def test_drawing_leaves_the_style_of_others_alone(history):
    before = dict(matplotlib.rcParams)
    loss_curves(history, "shapes")
    assert dict(matplotlib.rcParams) == before


def test_a_figure_without_alt_text_is_refused():
    with pytest.raises(ValueError, match="no alt text: expected a description"):
        show(Figure(), "x")


def test_a_persons_settings_of_matplotlib_change_no_figure(history):
    """Not while it is drawn, and not while it becomes a PNG."""
    plain = figure_png(loss_curves(history, "shapes"))
    wild = {
        "figure.autolayout": True,
        "savefig.bbox": "tight",
        "axes.facecolor": "red",
        "lines.dashed_pattern": [9, 9],
    }
    with matplotlib.rc_context(wild | {"savefig.transparent": True, "axes.prop_cycle": "cycler(color='y')"}):
        assert figure_png(loss_curves(history, "shapes")) == plain


def test_foreign_text_is_drawn_as_text_and_what_the_font_lacks_as_a_box():
    figure = Figure()
    text = figure.text(0, 0, "red \x1b[31m and \u202e \N{BALLOON}")
    figure_png(figure)  # a warning would be an error
    assert text.get_text() == r"red \x1b[31m and \u202e " + "\N{BALLOON}"
