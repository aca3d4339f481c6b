"""The gallery in a real browser, where there is one."""

import functools
import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from matplotlib.figure import Figure

from srvp.report import figures
from srvp.report.figures.style import WIDTH
from srvp.report.gallery import write_gallery

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
# Loads the page in a frame as wide as a screen, and writes down what a reader would stumble over.
PROBE = """<!doctype html><iframe src="index.html" width="{width}" height="900"></iframe><pre></pre>
<script>
const errors = [], frame = document.querySelector("iframe");
frame.contentWindow.addEventListener("error", (e) => errors.push(String(e.message)), true);
addEventListener("load", () => {{
  const page = frame.contentDocument, images = [...page.images];
  document.querySelector("pre").textContent = JSON.stringify({{
    errors,
    images: images.length,
    broken: images.filter((i) => !i.complete || !i.naturalWidth).map((i) => i.alt),
    unnamed: images.filter((i) => !i.alt).length,
    width: page.documentElement.scrollWidth,
    narrowest: Math.min(...images.map((i) => i.getBoundingClientRect().width)),
    widest: Math.max(...images.map((i) => i.getBoundingClientRect().right)),
  }});
}});
</script>"""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gallery")
    for run in (folder / "reports", folder / "runs" / "first", folder / "runs" / "second"):
        for name in ("samples_psnr_0", "metric_curves"):
            figure = Figure(figsize=(WIDTH, 2))
            figure.subplots().plot([0, 1])
            figures.save(figure, run, name)
    write_gallery(folder / "runs", ["first", "second"], folder / "reports")
    return folder / "reports"


def test_the_page_needs_nothing_but_itself(reports):
    page = (reports / "index.html").read_text()
    assert len(re.findall(r"<img src=\"data:image/png;base64,", page)) == 6
    assert not re.search(r"(src|href)=\"(?!data:|#)", page)
    assert "<script" not in page
    assert page.index('id="first"') < page.index('id="second"')


def test_a_figure_without_a_caption_is_named(reports, tmp_path):
    shutil.copytree(reports, tmp_path / "reports")
    (tmp_path / "reports" / "figures" / "riddle.png").touch()
    with pytest.raises(ValueError, match=r"riddle.png has no caption: add one to CAPTIONS"):
        write_gallery(tmp_path, [], tmp_path / "reports")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: install it to test the gallery")
@pytest.mark.parametrize("width", [360, 1280])
def test_a_browser_shows_every_picture_within_the_screen(reports, width, tmp_path):
    seen = probe(reports, width, tmp_path)
    assert seen["images"] == 6
    assert seen["errors"] == seen["broken"] == []
    assert seen["unnamed"] == 0
    assert seen["width"] <= width and seen["widest"] <= width  # nothing to scroll sideways
    assert seen["narrowest"] >= 300  # CSS pixels: readable


def probe(reports, width, tmp_path):
    (reports / "probe.html").write_text(PROBE.format(width=width))
    handler = functools.partial(SimpleHTTPRequestHandler, directory=reports)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/probe.html"
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
        options += ["--disable-background-networking", "--disable-component-update"]
        options += ["--disable-sync", f"--user-data-dir={tmp_path}", "--virtual-time-budget=20000"]
        result = subprocess.run(
            [CHROMIUM, *options, "--dump-dom", address], capture_output=True, text=True, timeout=120
        )
        server.shutdown()
    return json.loads(re.search(r"<pre>(\{.*\})</pre>", result.stdout).group(1))
