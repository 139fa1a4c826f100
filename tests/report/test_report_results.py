"""Results in the report: classes, curves, tables, cards, examples and the gallery."""

from __future__ import annotations

import re

import numpy as np
import pytest
from report_workdir import (
    CLASSES,
    HOSTILE,
    SHAPES,
    UNSEEN,
    make_gallery,
    page_of,
    write_classification,
    write_evaluation,
    write_metrics,
    write_retrieval,
)

from jaxclip.report import Gallery, write


def test_seen_and_held_out_classes_share_one_grid_with_the_held_out_marked(workdir):
    page = page_of(workdir)
    assert len(page.all("table", "heat")) == 1
    cells = page.all("td", "v")
    assert len(cells) == len(CLASSES)
    marked = {(cell["title"] or "").split(":")[0] for cell in page.all("td", "held")}
    assert marked == set(UNSEEN)
    order = re.findall(r'<th scope="col"><span>(\w+)</span>', page.source)
    assert order == [*SHAPES, "mean"]  # the set's own order, although "red circle" is held out


@pytest.mark.parametrize(
    ("names", "is_grid"),
    [
        (CLASSES, True),
        ([name for name in CLASSES if name not in UNSEEN], True),
        (["cat", "dog", "ship"], False),
        (["polar bear", "fire truck", "ice cream", "sea lion"], False),
        (["red circle", "blue square", "green big star"], False),
        (["red circle", "red square"], False),
    ],
)
def test_classes_make_a_grid_only_where_they_are_pairs_of_words_that_fill_one(tmp_path, names, is_grid):
    write_classification(tmp_path, 10, "set", dict.fromkeys(names, 0.5))
    page = page_of(tmp_path)
    assert bool(page.all("table", "heat")) == is_grid
    assert len(page.all("td", "v") if is_grid else page.all("li")) == len(names)


def test_of_a_thousand_classes_the_best_and_worst_show_and_the_rest_fold_away(tmp_path):
    write_classification(tmp_path, 10, "imagenet", {f"class{index}": index / 1000 for index in range(1000)})
    page = page_of(tmp_path)
    shown, folded = (
        re.sub("<details>.*</details>", "", page.source),
        "".join(re.findall("<details>.*</details>", page.source)),
    )
    assert len(re.findall("<li>", shown)) == 30 and len(re.findall("<li>", folded)) == 970
    assert all(f">class{index}<" in shown for index in (0, 14, 985, 999))


def test_classes_without_images_are_left_out(tmp_path):
    write_classification(tmp_path, 10, "set", {"cat": 0.5, "dog": 1.0}, per_class_recall=None)
    assert "Accuracy per class" not in page_of(tmp_path).headings
    content = {"cat": 0.5, "dog": 1.0, "elk": float("nan")}
    write_evaluation(tmp_path, 10, "set", {"acc1": 0.7}, per_class_recall=content, classnames=list(content))
    page = page_of(tmp_path)
    assert len(page.all("li")) == 2 and "chosen among 3 classes" in page.text


def test_metrics_of_the_method_and_of_validation_are_drawn(workdir):
    source = page_of(workdir).source
    parts = source.split("<b>Parts of the loss</b>")[1].split("</figure>")[0]
    names = re.findall(r'class="key c(\d)">([^<]*)<', parts)
    assert names == [("0", "itc, training"), ("1", "itc, validation"), ("2", "itm, training")]
    titles = re.findall("<figcaption><b>(.*?)</b>", source.split("<h2>Optimization</h2>")[1].split("<section>")[0])
    assert titles == ["Learning rate", "Gradient norm", "Logit scale"]


def test_a_metric_of_no_chart_has_its_own(workdir):
    write(workdir)
    source = (workdir / "report.html").read_text()
    further = source.split("<h2>Optimization</h2>")[1].split("<section>")[0]
    titles = re.findall("<figcaption><b>(.*?)</b>", further)
    assert titles == ["Learning rate", "Gradient norm", "Logit scale", "Batch accuracy", "Itc", "Itm"]


def test_learning_rates_of_several_groups_share_a_chart(workdir):
    rows = [{"step": step, "learning_rate": 1.0, "learning_rate_image": 0.1} for step in (1, 2)]
    write_metrics(workdir, rows)
    source = page_of(workdir).source
    assert re.findall(r'class="key c\d">([^<]*)<', source.split("<b>Learning rate</b>")[1].split("</figure>")[0]) == [
        "learning rate",
        "image",
    ]


def test_evaluations_over_the_steps(workdir):
    """Of several data sets the first column of each; of a single one all columns."""
    source = page_of(workdir).source

    def curves(title: str) -> list[str]:
        return re.findall(r'class="key c\d">([^<]*)<', source.split(f"<b>{title}</b>")[1].split("</figure>")[0])

    assert curves("Zero-shot classification: top-1") == ["shapes seen", "shapes unseen"]
    assert curves("Retrieval, caption → image: emoji") == ["R@1", "R@5", "R@10"]


def test_a_result_of_metrics_alone_is_a_card_and_a_table(tmp_path):
    """As an evaluator without tables writes it, and as older versions did."""
    metrics = {"median_rank": 3.5, "mean_rank": 12.25, "broken": None}
    write_evaluation(tmp_path, 10, "emoji", metrics, task="median_rank")
    page = page_of(tmp_path)
    assert "emoji 3.5 median rank" in page.text
    assert "Median rank median rank mean rank step emoji 3.5 12.25 10" in page.text


def test_an_older_result_shows_its_classes(tmp_path):
    accuracy = {"cat": 0.5, "dog": 1.0}
    metrics = {"acc1": 0.75, "acc5": None, "mean_per_class_recall": 0.75}
    write_evaluation(
        tmp_path,
        10,
        "pets",
        metrics,
        task="zeroshot_classification",
        per_class_recall=accuracy,
        classnames=["cat", "dog"],
    )
    page = page_of(tmp_path)
    assert page.headings == ["Evaluation", "Accuracy per class"]
    assert "Zeroshot classification acc1 mean per class recall step pets 0.75 0.75 10" in page.text


def test_tables_of_one_title_and_columns_are_one(workdir):
    write_retrieval(workdir, 600, "flickr", 0.2)
    assert len(page_of(workdir).all("table", "results")) == 2


@pytest.mark.parametrize(
    "tables",
    [
        "text",
        [3],
        [{"title": "T", "columns": ["a", "b"], "rows": {"": [1.0]}}],
        [{"title": "T", "columns": ["a"], "rows": [[1.0]]}],
        [{"title": "T", "columns": [], "rows": {}}],
    ],
)
def test_tables_that_are_none_give_way_to_the_metrics(tmp_path, tables):
    write_evaluation(tmp_path, 10, "set", {"rank": 2.0}, task="ranks", tables=tables)
    assert "Ranks rank step set 2 10" in page_of(tmp_path).text


def test_cells_may_be_text_or_missing_and_bars_stay_in_their_column(tmp_path):
    rows = {"first": [HOSTILE, None], "second": [7.5, "many"]}
    table = {"title": "T", "columns": ["a", "b"], "rows": rows, "fractions": True}
    write_evaluation(tmp_path, 10, "set", {}, tables=[table])
    page = page_of(tmp_path)
    assert "<script>alert(1)</script>" in page.text and "750.0%" in page.text and "many" in page.text
    assert [bar["style"] for bar in page.all("i")] == ["width:100.0%"]


def test_examples_are_images_with_texts_and_other_urls_are_rejected(tmp_path):
    good = "data:image/webp;base64,UklGRg=="
    bad = ["http://example.com/a.png", "data:text/html;base64,QQ==", good + '" onerror="x', None, 3]
    examples = [{"image": image, "text": f"{HOSTILE} {index}"} for index, image in enumerate([good, *bad])]
    write_evaluation(tmp_path, 10, "set", {"cider": 1.0}, task="captioning", examples=examples)
    page = page_of(tmp_path)
    assert "Examples" in page.headings
    assert [image["src"] for image in page.all("img")] == [good]
    assert "<script>alert(1)</script>" in page.text and f"{HOSTILE} 1" not in page.text


def test_the_parts_of_an_example_stand_beside_it(tmp_path):
    urls = [f"data:image/webp;base64,UklGRg=={end}" for end in ("", "=", "==", "A")]
    parts = [{"image": urls[1], "text": HOSTILE}, {"image": urls[2], "text": "dog", "parts": [{"image": urls[3]}]}]
    examples = [{"image": urls[0], "text": "a dog", "parts": [*parts, {"image": "http://example.com/a.png"}, 3]}]
    write_evaluation(tmp_path, 10, "set", {"cider": 1.0}, task="captioning", examples=examples)
    page = page_of(tmp_path)
    assert [image["src"] for image in page.all("img")] == urls[:3]
    assert f"a dog {HOSTILE} dog" in page.text


def test_retrieval_shows_both_directions_at_every_rank(workdir):
    text = page_of(workdir).text
    assert "emoji caption → image 30.0% 60.0% 75.0% 600" in text
    assert "emoji image → caption 30.0% 60.0% 75.0% 600" in text


def test_matrix_takes_pairs_of_distinct_captions_without_regard_to_case(tmp_path):
    captions = [("a {}", "A  {}")[index % 2].format(("dog", "cat", "sheep")[index % 3]) for index in range(24)]
    page = page_of(tmp_path, make_gallery(captions=captions))
    body = page.source.split('class="heat matrix"')[1].split("</table>")[0]
    assert sorted(re.findall(r'<th scope="row">\S+ +(.*?)</th>', body)) == ["cat", "dog", "sheep"]
    assert len(page.all("td", "own")) == 3


def test_every_image_the_caption_is_true_of_is_marked_right(tmp_path):
    captions = [f"thing {index // 2}" for index in range(24)]
    page = page_of(tmp_path, make_gallery(captions=captions))
    images = page.source.split("From caption to image")[1].split("From image to caption")[0]
    assert [row.count("<li class=right>") for row in images.split('class="query"')[1:]] == [2] * 6


def test_a_right_answer_outside_the_top_five_is_given_its_rank(tmp_path):
    gallery = make_gallery()
    page = page_of(tmp_path, Gallery(gallery.images, gallery.captions, -gallery.similarity))
    assert len(re.findall(r"its own image comes at rank 24 of 24", page.source)) == 6
    assert len(re.findall(r"its own, <q>.*?</q>, comes at rank 24 of 24", page.source)) == 6
    assert "class=right" not in page.source


@pytest.mark.parametrize(("count", "shown"), [(0, False), (1, False), (2, True), (5, True), (200, True)])
def test_galleries_of_any_size(tmp_path, count, shown):
    assert ("Similarity" in page_of(tmp_path, make_gallery(count)).headings) == shown


def test_similarities_that_are_not_finite_do_not_stop_the_page(tmp_path):
    gallery = make_gallery()
    page = page_of(tmp_path, Gallery(gallery.images, gallery.captions, np.full_like(gallery.similarity, np.nan)))
    assert "Similarity" in page.headings and "nan" not in page.text.lower()


def test_a_gallery_whose_parts_differ_in_length_is_refused():
    gallery = make_gallery(4)
    with pytest.raises(ValueError, match="3 captions"):
        Gallery(gallery.images, gallery.captions[:3], gallery.similarity)


def test_counts_are_in_the_table_and_are_not_drawn(tmp_path):
    for step, images in ((10, 5), (20, 3)):
        rows = {"cat → dog": ["12.5%", images], "dog → cat": [0.25 * images, images]}
        table = {"title": "Confusions", "columns": ["share", "images"], "rows": rows}
        write_evaluation(tmp_path, step, "pets", {}, tables=[table])
    page = page_of(tmp_path)
    assert "pets cat → dog 12.5% 3 20" in page.text
    assert "Confusions, dog → cat: pets" in page.text and "Confusions, cat → dog" not in page.text
