"""The report of a run: complete, self-contained, safe for any text, and readable on a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from report_workdir import (
    CONFIG,
    HOSTILE,
    make_gallery,
    metric_rows,
    page_of,
    write_classification,
    write_evaluation,
    write_metrics,
    write_retrieval,
)

from jaxclip.errors import UserError
from jaxclip.evaluate.robustness import Reference
from jaxclip.report import charts, write, writing


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


def test_smoothing_keeps_a_straight_level_and_bridges_a_missing_value():
    values = np.full(50, 3.0)
    values[20] = np.nan
    np.testing.assert_allclose(charts.smooth(values, 2.0), 3.0, rtol=1e-12)
    assert np.isnan(charts.smooth(np.full(5, np.nan), 2.0)).all()


def test_only_peaks_far_above_the_rest_are_cut_off():
    """The start of a falling curve is none."""
    values = np.linspace(10.02, 0, 300)
    steps = np.arange(1.0, 301)
    assert "cut off" not in charts.line_chart("x", [charts.Series("x", steps, values, smoothed=True)])
    values[30] = 40
    assert "the highest is 40 at step 31." in charts.line_chart("x", [charts.Series("x", steps, values, smoothed=True)])


@pytest.mark.parametrize(
    "values", [[0.0], [5.0, 5.0], [-3.0, 4.0], [1e-9, 2e-9], [2e-15, 0.0], [1e-300], [1e20, 3e20], [0.2999, 0.3]]
)
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
    # Of a suite, of few images, of shifted data, and right and wrong answers.
    examples = [{"image": "data:image/webp;base64,UklGRg==", "text": long, "right": right} for right in (True, False)]
    for index in range(3):
        name = f"{long}of{index}"
        write_classification(workdir, 600, name, {"a": 0.5 + index / 10}, data=long, examples=examples)
    write_evaluation(workdir, 600, f"{long}probe", {"lp_acc1": 0.7}, data=long, fewer_images={"1shot": [0.2, 0.3]})
    accuracies = np.array([0.4, 0.6])
    reference = Reference((long, "b"), f"{long}of0", accuracies, {f"{long}of1": accuracies, f"{long}of2": accuracies})
    source = (
        write(workdir, make_gallery(captions=captions), {}, reference)
        .read_text()
        .replace("<details>", "<details open>")
    )
    frames = "".join(f'<iframe width="{width}" srcdoc="{writing.escape(source)}"></iframe>' for width in (390, 1280))
    # A pointer over every chart opens its tooltip, which must not widen the page either.
    measure = """
      window.onload = () => {
        document.title = "widths " + [...document.querySelectorAll("iframe")].map((frame) => {
          const page = frame.contentDocument, plots = page.querySelectorAll(".plot[data-series]");
          for (const plot of plots) {
            const box = plot.getBoundingClientRect();
            plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width * 0.49}));
          }
          return page.documentElement.scrollWidth + "/" + page.documentElement.clientWidth + "/" +
            page.querySelectorAll(".tip:not([hidden])").length + "/" + plots.length;
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
