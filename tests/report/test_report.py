"""The report of a run: complete, self-contained, safe for any text, and readable on a phone."""

from __future__ import annotations

import html.parser
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import pytest

from jaxclip.errors import UserError
from jaxclip.report import Gallery, charts, write, writing

HOSTILE = "<script>alert(1)</script> \" onload='x' & <img src=http://example.com/x.png>"
COLORS = ["red", "green", "blue", "yellow", "purple", "orange", "white", "pink", "brown", "cyan"]
SHAPES = ["circle", "square", "triangle", "star", "heart", "cross", "ring", "crescent"]
CLASSES = [f"{color} {shape}" for color in COLORS for shape in SHAPES]
UNSEEN = CLASSES[::5]
CONFIG = {
    "seed": 0,
    "steps": 600,
    "batch_size": 128,
    "data": {"train": "shapes", "eval": "shapes", "caption_templates": ["{}", "a photo of a {}"]},
    "method": {"name": "clip", "image": {"layers": 4, "width": 128}},
    "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.98]},
}
CHARTS = {"In-batch accuracy": ("batch_accuracy",), "Parts of the loss": ("itc", "itm")}


def metric_rows(count: int = 60, every: int = 10) -> list[dict]:
    """Plausible curves of a run that learns, logged at every tenth step and validated at every hundredth."""
    noise = np.random.default_rng(0).normal(size=(count, 4))
    rows = []
    for index in range(count):
        step, done = (index + 1) * every, (index + 1) / count
        row = {
            "step": step,
            "loss": 0.4 + 4.4 * np.exp(-4 * done) + 0.1 * noise[index, 0],
            "learning_rate": 1e-3 * min(10 * done, 0.5 * (1 + np.cos(np.pi * done))),
            "grad_norm": 1.5 + abs(noise[index, 1]),
            "logit_scale": 14.3 + 30 * done,
            "batch_accuracy": float(np.clip(0.9 * (1 - np.exp(-4 * done)) + 0.02 * noise[index, 2], 0, 1)),
            "images_per_second": 800 + 20 * noise[index, 3],
            "data_wait": 0.02,
            "itc": 0.3 + 2 * np.exp(-4 * done),
            "itm": 0.1 + 2.4 * np.exp(-4 * done),
            "skipped": 0,
            "not_a_number": "ignored",
        }
        if step % 100 == 0:
            row |= {f"validation_{key}": row[key] + 0.1 for key in ("loss", "itc", "logit_scale")}
        rows.append(row)
    return rows


def write_metrics(workdir: pathlib.Path, rows: list[dict], ending: str = "") -> None:
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + ending)


def write_evaluation(workdir: pathlib.Path, step: int, dataset: str, metrics: dict, **more: object) -> None:
    folder = workdir / "evals" / str(step)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"dataset": dataset, "model": "clip", "pretrained": "run", "metrics": metrics, "language": "en", **more}
    (folder / f"{re.sub('[^a-z0-9]+', '_', dataset)[-60:]}.json").write_text(json.dumps(content))


def write_classification(workdir: pathlib.Path, step: int, dataset: str, accuracy: dict[str, float], **more) -> None:
    top = float(np.mean(list(accuracy.values())))
    metrics = {"acc1": top, "acc5": min(1.0, top + 0.1), "mean_per_class_recall": top}
    table = {"title": "Zero-shot classification", "columns": ["top-1", "top-5", "mean per class"]}
    table |= {"rows": {"": list(metrics.values())}, "fractions": True}
    shown = {"headline": [f"{top:.1%}", "zero-shot top-1\nchance 1.2%"], "tables": [table]}
    more = shown | {"classnames": list(accuracy), "per_class_recall": accuracy, **more}
    write_evaluation(workdir, step, dataset, metrics, task="zeroshot_classification", **more)


def write_retrieval(workdir: pathlib.Path, step: int, dataset: str, found: float) -> None:
    metrics = {
        f"{direction}_retrieval_recall@{rank}": min(1.0, found * scale)
        for direction in ("image", "text")
        for rank, scale in ((1, 1), (5, 2), (10, 2.5))
    }
    values = list(metrics.values())
    rows = {"caption → image": values[:3], "image → caption": values[3:]}
    table = {"title": "Retrieval", "columns": ["R@1", "R@5", "R@10"], "rows": rows, "fractions": True}
    headline = [f"{found:.1%} R@1", "caption → image"]
    write_evaluation(workdir, step, dataset, metrics, task="zeroshot_retrieval", headline=headline, tables=[table])


def make_gallery(count: int = 24, captions: list[str] | None = None) -> Gallery:
    """Colored squares; each image is most like its own caption, and next most like its neighbors'."""
    random = np.random.default_rng(1)
    images = np.broadcast_to(random.integers(0, 255, (count, 1, 1, 3)), (count, 32, 32, 3)).astype(np.uint8)
    distance = np.abs(np.arange(count)[:, None] - np.arange(count)[None, :])
    similarity = (0.4 - 0.02 * distance).astype(np.float32)
    return Gallery(images, captions or [f"an image of thing {index}" for index in range(count)], similarity)


@pytest.fixture
def workdir(tmp_path: pathlib.Path) -> pathlib.Path:
    """A run with everything in it: metrics, three evaluations of seen and unseen shapes, and retrieval."""
    workdir = tmp_path / "quickstart"
    workdir.mkdir()
    (workdir / "config.json").write_text(json.dumps(CONFIG))
    write_metrics(workdir, metric_rows())
    for step in (200, 400, 600):
        known = {name: step / 620 for name in CLASSES if name not in UNSEEN}
        write_classification(workdir, step, "shapes_seen", known, classnames=CLASSES)
        write_classification(workdir, step, "shapes_unseen", {name: step / 900 for name in UNSEEN}, classnames=CLASSES)
        write_retrieval(workdir, step, "emoji", step / 2000)
    return workdir


class Page(html.parser.HTMLParser):
    """A parsed page: its elements with attributes, its text, and whether what it opens it closes."""

    VOID = frozenset({"meta", "link", "img", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, kind: str = "") -> list[dict[str, str | None]]:
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (not kind or kind in (attributes.get("class") or "").split())
        ]

    @property
    def headings(self) -> list[str]:
        return re.findall("<h2>(.*?)</h2>", self.source)


def page_of(workdir: pathlib.Path, gallery: Gallery | None = None) -> Page:
    path = write(workdir, gallery, CHARTS)
    assert path == workdir / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open, f"left open: {page.open}"
    for path_element in page.all("path"):
        assert "nan" not in (path_element["d"] or "") and "inf" not in (path_element["d"] or "")
    return page


def test_a_whole_run_fills_every_section_in_reading_order(workdir):
    page = page_of(workdir, make_gallery())
    assert page.headings == [
        "Learning",
        "Optimization",
        "Evaluation",
        "Accuracy per class",
        "Similarity",
        "From caption to image",
        "From image to caption",
        "Throughput",
        "Configuration",
    ]
    assert "<h1>quickstart</h1>" in page.source
    assert not list(workdir.glob("*.tmp"))


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ("config.json", {"Configuration"}),
        ("metrics.jsonl", {"Optimization", "Throughput"}),
        ("evals", {"Evaluation", "Accuracy per class"}),
        ("gallery", {"Similarity", "From caption to image", "From image to caption"}),
    ],
)
def test_a_missing_part_leaves_only_its_own_sections_out(workdir, missing, gone):
    whole = page_of(workdir, make_gallery()).headings
    if (workdir / missing).is_dir():
        shutil.rmtree(workdir / missing)
    else:
        (workdir / missing).unlink(missing_ok=True)
    page = page_of(workdir, None if missing == "gallery" else make_gallery())
    assert page.headings == [heading for heading in whole if heading not in gone]
    assert ("Not evaluated yet" in page.text) == (missing == "evals")


def test_an_empty_workdir_still_gives_a_page(tmp_path):
    page = page_of(tmp_path)
    assert page.headings == []
    assert "no step logged yet. Not evaluated yet." in page.text


def test_a_missing_workdir_is_one_line_naming_it(tmp_path):
    with pytest.raises(UserError) as caught:
        write(tmp_path / "nowhere", None)
    assert "nowhere" in str(caught.value) and "\n" not in str(caught.value)


def test_page_makes_no_network_requests(workdir):
    page = page_of(workdir, make_gallery())
    for _, attributes in page.elements:
        for name in ("src", "href", "srcset", "data", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:"), attributes
    assert not re.search(r"https?://|@import|url\(", page.source)
    assert all("src" not in script for script in page.all("script"))


def test_hostile_text_is_escaped_wherever_it_comes_from(workdir):
    (workdir / "config.json").write_text(
        json.dumps({**CONFIG, HOSTILE: HOSTILE, "method": {"name": HOSTILE}, "data": {"train": HOSTILE}})
    )
    write_classification(workdir, 600, HOSTILE, {f"{HOSTILE} {index}": 0.5 for index in range(50)})
    write_retrieval(workdir, 500, HOSTILE + "2", 0.1)
    write_retrieval(workdir, 600, HOSTILE + "2", 0.2)
    (workdir / "evals" / "600" / "bad <script>.json").write_text("{")
    hostile = workdir.rename(workdir.with_name("<script>alert(2)<"))
    page = page_of(hostile, make_gallery(captions=[f"{HOSTILE} {index}" for index in range(24)]))
    assert len(page.all("script")) == 1
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
    assert all((image["src"] or "").startswith("data:image/") for image in page.all("img"))
    assert "<script>alert(1)</script>" in page.text and "<script>alert(2)<" in page.text


def test_text_that_utf8_cannot_hold_does_not_stop_the_page(workdir):
    assert "thing ?" in page_of(workdir, make_gallery(captions=[f"thing \ud800 {i}" for i in range(24)])).text


def test_a_truncated_last_line_is_left_out_with_a_note(workdir):
    write_metrics(workdir, metric_rows(40), ending='{"step": 410, "loss": 0.')
    page = page_of(workdir)
    assert "trained for 400 steps of 600 planned" in page.text
    assert "One line of metrics.jsonl could not be read" in page.text


def test_an_unreadable_evaluation_is_named_and_the_others_shown(workdir):
    (workdir / "evals" / "600" / "emoji.json").write_text('{"dataset": "em')
    page = page_of(workdir)
    assert "evals/600/emoji.json is not a JSON object" in page.text
    assert "Evaluated at step 400, 600." in page.text  # emoji's latest readable one is older


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "NaN"])
def test_losses_that_are_not_finite_leave_gaps_and_a_note(workdir, bad):
    rows = metric_rows()
    for index in (5, 6, 30):
        rows[index]["loss"] = bad
    write_metrics(workdir, rows)
    assert "Not a finite number at 3 logged steps." in page_of(workdir).text


def test_a_run_of_only_nan_draws_no_curve(workdir):
    keys = metric_rows(1)[0].keys() - {"step"}
    write_metrics(workdir, [{"step": step, **dict.fromkeys(keys, float("nan"))} for step in range(1, 40)])
    shutil.rmtree(workdir / "evals")
    page = page_of(workdir)
    assert page.headings == ["Configuration"] and not page.all("div", "card")


def test_one_logged_row_is_a_dot_in_every_chart(workdir):
    shutil.rmtree(workdir / "evals")
    write_metrics(workdir, [{**metric_rows(1)[0], "step": 1}])
    page = page_of(workdir)
    # Loss, two of the method's charts with three curves, learning rate, gradient norm, logit scale, speed and waiting.
    assert len(page.all("figure", "chart")) == 8 and len(page.all("path", "dots")) == 9
    assert "trained for 1 step " in page.text


def test_a_long_run_makes_a_light_page_that_keeps_its_spikes(workdir):
    rows = [{"step": step, "loss": 1.0, "grad_norm": 1.0} for step in range(1, 60_001)]
    rows[40_000]["grad_norm"] = 77.0
    write_metrics(workdir, rows)
    page = page_of(workdir)
    assert len(page.source) < 300_000
    assert "the highest is 77 at step 40,001" in page.text


def test_the_highest_step_is_the_final_result_whatever_its_number_of_digits(tmp_path):
    for step, top in ((900, 0.111), (1000, 0.222)):
        write_classification(tmp_path, step, "cifar10", {"cat": top, "dog": top})
    page = page_of(tmp_path)
    assert "Evaluated at step 1,000." in page.text
    assert re.search(r"<strong>22\.2%</strong>", page.source)


def test_training_time_is_images_over_images_per_second(workdir):
    rows = [{"step": step, "loss": 1.0, "images_per_second": speed} for step, speed in ((100, 128.0), (200, 64.0))]
    write_metrics(workdir, rows)  # 100 x 128 / 128 + 100 x 128 / 64 seconds
    assert "5 min 0 s" in page_of(workdir).text


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


def test_smoothing_keeps_a_straight_level_and_bridges_a_missing_value():
    values = np.full(50, 3.0)
    values[20] = np.nan
    np.testing.assert_allclose(charts.smooth(values, 2.0), 3.0, rtol=1e-12)
    assert np.isnan(charts.smooth(np.full(5, np.nan), 2.0)).all()


@pytest.mark.parametrize("values", [[0.0], [5.0, 5.0], [-3.0, 4.0], [1e-9, 2e-9], [1e20, 3e20], [0.2999, 0.3]])
def test_a_chart_holds_any_range_of_values_between_its_ticks(values):
    series = charts.Series("x", np.arange(1.0, len(values) + 1), np.array(values))
    drawn = charts.line_chart("x", [series])
    heights = [int(height) for height in re.findall(r"[ML]\d+ (-?\d+)", drawn)]
    assert heights and all(0 <= height <= 2000 for height in heights)
    labels = re.findall(r'class="y" style="[^"]*">([^<]*)<', drawn)
    assert 2 <= len(labels) <= 9 and len(set(labels)) == len(labels)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (writing.number(0.42134), "0.4213"),
        (writing.number(12345.6), "12,346"),
        (writing.number(5e-5), "5e−5"),
        (writing.number(-0.5), "−0.5"),
        (writing.number(float("nan")), "—"),
        (writing.percent(0.9345), "93.5%"),
        (writing.steps_short(1500), "1.5k"),
        (writing.steps_short(2_000_000), "2M"),
        (writing.duration(59.6), "1 min 0 s"),
        (writing.duration(7500), "2 h 5 min"),
        (writing.count(1, "step"), "1 step"),
        (writing.count(1500, "step"), "1,500 steps"),
    ],
)
def test_numbers_are_written_for_people(written, expected):
    assert written == expected


@pytest.fixture(scope="module")
def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("no chromium on this machine to measure the page with")
    return found


def test_page_is_never_wider_than_the_screen(workdir, tmp_path, chromium):
    long = "unbroken" * 40
    write_classification(workdir, 600, "wide_set", {f"{long}{index}": 0.5 for index in range(50)})
    write_classification(workdir, 600, long, {f"word{a} thing{b}": 0.5 for a in range(3) for b in range(40)})
    write_retrieval(workdir, 500, f"{long}s", 0.1)
    write_retrieval(workdir, 600, f"{long}s", 0.1)
    (workdir / "config.json").write_text(json.dumps({**CONFIG, long: long, "data": {"train": long}}))
    captions = [f"{long} {index}" for index in range(12)] + [f"{index} {'many words ' * 40}" for index in range(12)]
    source = write(workdir, make_gallery(captions=captions)).read_text().replace("<details>", "<details open>")
    frames = "".join(f'<iframe width="{width}" srcdoc="{writing.escape(source)}"></iframe>' for width in (390, 1280))
    # A pointer over every chart opens its tooltip, which must not widen the page either.
    measure = """
      window.onload = () => {
        document.title = "widths " + [...document.querySelectorAll("iframe")].map((frame) => {
          const page = frame.contentDocument;
          for (const plot of page.querySelectorAll(".plot")) {
            const box = plot.getBoundingClientRect();
            plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width * 0.49}));
          }
          return page.documentElement.scrollWidth + "/" + page.documentElement.clientWidth + "/" +
            page.querySelectorAll(".tip:not([hidden])").length + "/" + page.querySelectorAll(".plot").length;
        }).join(" ") + " end";
      };"""
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f'<meta charset="utf-8"><style>iframe {{ border: 0 }}</style>{frames}<script>{measure}</script>')
    quiet = "--disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += [*quiet.split(), f"--user-data-dir={tmp_path / 'profile'}", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    widths = re.search("<title>widths (.*?) end</title>", done.stdout)
    assert widths, done.stderr[-500:]
    for expected, measured in zip((390, 1280), widths[1].split(), strict=True):
        wide, window, tips, plots = map(int, measured.split("/"))
        assert (wide, window) == (expected, expected)
        assert tips == plots > 6
