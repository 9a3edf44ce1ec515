"""export/web in headless Chromium: the real page, served from this machine, with images dropped into it."""

from __future__ import annotations

import codecs
import csv
import hashlib
import http.server
import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from making import write_json
from runners import CHROMIUM, javascript, needs_chromium, needs_node, needs_runtime, put, zoo
from serving import running

from okdc.bundle import web
from okdc.runs.accuracy import wilson_pct
from okdc.runs.files import read_json

pytestmark = [needs_chromium, needs_runtime]

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync",
    "--disable-extensions", "--disable-background-networking", "--disable-component-update", "--disable-default-apps",
    "--disable-domain-reliability", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
    "--enable-logging=stderr", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip
# A page around the page: it does what a person would, and posts what it then sees. The page itself is as it is shipped.
DRIVER = """<!doctype html><iframe width="1000" height="800"></iframe><script type="module">
const frame = document.querySelector("iframe"), inner = () => frame.contentDocument;
const $ = (id) => inner().getElementById(id), text = (id) => $(id).textContent.trim().replace(/\\s+/g, " ");
const tick = () => new Promise((done) => setTimeout(done, 20));
async function settled(...states) {
  do await tick(); while (!states.includes(inner()?.body?.dataset.state));
}
async function open(folder) {
  const loaded = new Promise((done) => (frame.onload = done));
  frame.src = folder + "/index.html";
  await loaded;
  await settled("ready", "error");
}
async function transfer(...names) {
  const there = frame.contentWindow, dataTransfer = new there.DataTransfer();
  for (const name of names) {
    const blob = await (await fetch("zoo/" + name)).blob();
    dataTransfer.items.add(new there.File([blob], names.length > 1 && renamed[name] || name));
  }
  return new there.DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
}
async function drop(...names) {
  inner().dispatchEvent(await transfer(...names));
  await settled("ready", "refused");
  return seen();
}
async function replace(first, second) {
  const [before, after] = [await transfer(...first), await transfer(...second)], length = [];
  new frame.contentWindow.MutationObserver(() => {
    if (length.push($("rows").children.length) === 1) inner().dispatchEvent(after);
  }).observe($("rows"), { childList: true });
  inner().dispatchEvent(before);
  await settled("ready", "refused");
  return Math.max(...length);
}
async function choose(model) {
  $("model").value = model;
  $("model").dispatchEvent(new frame.contentWindow.Event("change"));
  await settled("ready", "refused");
}
function seen() {
  const rows = [...inner().querySelectorAll("#results li")];
  const top = rows.map((li) => [li.querySelector(".label").textContent, Number(li.dataset.probability)]);
  const shares = rows.map((li) => [li.querySelector(".share").textContent, li.querySelector(".bar").style.width]);
  const said = { status: text("status"), latency: text("latency"), runs: text("runs"), name: text("name") };
  return { top, shares, unsure: text("unsure") !== "", ...said };
}
function rows() {
  return [...$("rows").children].map((tr) => [[...tr.cells].map((c) => c.textContent), Number(tr.dataset.probability)]);
}
function matrix() {
  return [...$("matrix").rows].map((tr) => [...tr.cells].map((cell) => [cell.textContent, cell.scope ?? ""]));
}
async function saved() {
  const there = frame.contentWindow, blobs = [], names = [], make = there.URL.createObjectURL;
  there.URL.createObjectURL = (blob) => (blobs.push(blob), make.call(there.URL, blob));
  there.HTMLAnchorElement.prototype.click = function () { names.push(this.download); };
  $("save").click();
  return [names, await blobs[0].text(), [...new Uint8Array(await blobs[0].slice(0, 3).arrayBuffer())]];
}
async function until(condition) {
  while (!condition()) await tick();
}
async function watch() {
  const found = {}, there = frame.contentWindow, media = there.navigator.mediaDevices, asked = [];
  const ask = media.getUserMedia.bind(media);
  media.getUserMedia = async (wishes) => (asked.push(await ask(wishes)), asked.at(-1));
  const tracks = () => asked.flatMap((stream) => stream.getTracks());
  const live = () => tracks().filter((track) => track.readyState === "live").length;
  const start = async () => {
    $("camera").click();
    await until(() => live() === 1 && text("name") === "Camera" && $("results").ariaLive === "off");
    $("results").replaceChildren();
    await until(() => inner().querySelectorAll("#results li").length === 5);
  };
  found.before = asked.length;
  await start();
  found.on = [live(), $("live").hidden, text("camera"), text("from")];
  $("camera").click();
  await until(() => text("name") === "camera.png" && text("runs"));
  found.off = [live(), $("live").hidden, text("camera"), $("preview").hidden];
  await start();
  Object.defineProperty(inner(), "hidden", { value: true, configurable: true });
  inner().dispatchEvent(new there.Event("visibilitychange"));
  found.hidden = live();
  delete inner().hidden;
  await start();
  found.dropped = [(await drop("wide.png")).name, live(), $("live").hidden];
  found.refused = {};
  for (const name of ["NotAllowedError", "NotFoundError", "NotReadableError", "AbortError"]) {
    media.getUserMedia = () => Promise.reject(new there.DOMException("no", name));
    $("camera").click();
    await settled("refused");
    found.refused[name] = text("status");
    await drop("wide.png");
  }
  Object.defineProperty(there.navigator, "mediaDevices", { value: undefined });
  $("camera").click();
  await settled("refused");
  found.refused.none = text("status");
  return found;
}
async function press(element) {
  element.click();
  await settled("ready", "refused");
}
async function attempt(job) {
  try { return String(await job()); } catch (error) { return "refused"; }
}
const { images, broken, elsewhere, renamed, many, facts } = await (await fetch("plan.json")).json();
const found = { dropped: {}, models: {}, operators: {}, broken: {} };
try {
  await open("good");
  found.title = text("title");
  found.facts = text("facts");
  found.choice = !$("choice").hidden;
  for (const name of images) found.dropped[name] = await drop(name);
  found.text = await drop("notes.txt");
  found.card = [...$("card").children].map((row) => [...row.children].map((cell) => cell.textContent));
  found.matrix = matrix();
  found.kept = [...$("kept").rows].map((tr) => [...tr.cells].map((cell) => cell.textContent));
  found.alone = $("several").hidden;
  await drop(...many);
  found.rows = rows();
  found.progress = text("progress");
  found.csv = await saved();
  $("rows").querySelector("button").click();
  await settled("ready");
  found.opened = text("name");
  await press(inner().querySelectorAll("#samples button")[1]);
  found.sample = seen();
  await press($("selftest"));
  found.selftest = [text("verdict"), $("verdict").className];
  found.keyboard = [...inner().querySelectorAll("input, button, select")]
    .filter((e) => !e.closest("[hidden], #rows")).map((e) => [e.id || e.title, e.tabIndex, e.disabled]);
  frame.style.width = "360px";
  await tick();
  found.width = inner().documentElement.scrollWidth;
  const there = frame.contentWindow;
  found.fetched = await attempt(() => there.fetch(elsewhere));
  found.evaluated = await attempt(() => there.eval("1"));
  found.posted = await attempt(() => there.navigator.sendBeacon(elsewhere, "x"));
  found.resources = there.performance.getEntriesByType("resource").map((entry) => entry.name);
  for (const model of ["int8", "float16"]) {
    await choose(model);
    await press($("selftest"));
    found.models[model] = { rows: rows(), ...seen(), verdict: text("verdict"), kind: $("verdict").className };
  }
  await open("good");
  found.replaced = [await replace(Array(200).fill("wide.png"), many), rows()];
  await open("good");
  found.camera = await watch();
  found.about = {};
  for (const name of facts) {
    await open(name);
    const state = inner().body.dataset.state, elements = inner().querySelectorAll("main ~ section *");
    const kinds = [...new Set([...elements].map((e) => e.localName))].sort();
    found.about[name] = { state, kinds, matrix: matrix(), counted: text("counted"), confused: text("confused") };
    found.about[name].threshold = text("threshold");
    found.about[name].unsure = (await drop("wide.png")).unsure;
    await drop("wide.png", "notes.txt");
    found.about[name].columns = [...$("several").querySelectorAll("tr")].map((tr) => {
      return [...tr.cells].filter((cell) => !cell.hidden).reduce((count, { colSpan }) => count + colSpan, 0);
    });
  }
  await open("operators");
  for (const model of ["float32", "int8", "float16"]) {
    await choose(model);
    await press($("selftest"));
    found.operators[model] = [text("verdict"), $("verdict").className];
  }
  await open("one");
  found.single = [$("choice").hidden, text("facts")];
  await open("apart");
  await press($("selftest"));
  found.apart = [text("verdict"), $("verdict").className];
  await open("lacking");
  await choose("int8");
  found.lacking = { status: text("status"), model: $("model").value };
  await drop(...many);
  found.lacking.csv = (await saved())[1];
  await press($("selftest"));
  found.lacking.selftest = $("verdict").className;
  for (const name of broken) {
    await open(name);
    found.broken[name] = [text("status"), inner().body.dataset.state];
  }
} catch (error) {
  found.error = String(error.stack);
}
await fetch("found", { method: "POST", body: JSON.stringify(found) });
</script>"""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    found: dict[str, Any]

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Handler, directory=str(folder)))
        self.paths: list[str] = []
        self.done = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(http.server.SimpleHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        super().do_GET()

    def do_POST(self) -> None:
        self.server.paths.append(self.path)
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        if self.path == "/found":
            self.server.found = json.loads(content)
            self.server.done.set()

    def log_message(self, *_: object) -> None:
        """The tests look at `paths`."""


IMAGES = [
    "wide.png", "tall.png", "grey.png", "palette.png", "one_bit.png", "exact.png", "tiny.png", "turned_6.png",
    "turned_8.png", "lossless.webp", "alpha.png", "grey_alpha.png", "clear.png", "sixteen.png", "turned.jpg",
    "smooth.jpg",
]  # fmt: skip
# Of these a table is made: one is no image, one has a name that a spreadsheet would compute.
MANY = ["wide.png", "tall.png", "notes.txt", "exact.png", "grey.png", "turned_6.png", "lossless.webp"]
RENAMED = {"grey.png": '=1+"2",3.png'}
THRESHOLD = 0.775  # of the page that takes them: some are below it, some above
FACTS = (
    "without",
    "edited",
    "reordered",
    "hostile",
    "many",
    "unsure",
    "certain",
)  # bundles that say other things of themselves
BROKEN = {
    "missing": "There is no bundle beside this page",
    "newer": "schema 2, this client reads schema 1",
    "tampered": "model.onnx is not the file of the manifest",
    "squeezed": "does not know the input",
    "damaged": "is not JSON",
    "outside": "names a file outside itself",
    "alone": "onnxruntime-web is not in the folder ort/",
}


def _answer(page: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the answers.json of a page's bundle; its manifest names the new hash."""
    path = page / "bundle" / "answers.json"
    answers = read_json(path)
    change(answers)
    write_json(path, answers)
    content = path.read_bytes()
    put(path.parent, ("files", path.name), {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)})


def _tell(root: Path) -> None:
    """The bundles of FACTS, each with other facts or without."""
    files = read_json(root / "without" / "bundle" / "manifest.json")["files"]
    put(root / "without" / "bundle", files={name: facts for name, facts in files.items() if name != "answers.json"})
    (root / "edited" / "bundle" / "answers.json").write_text("{}")
    _answer(root / "reordered", lambda a: a["confusions"][0].__setitem__(1, 10))
    put(root / "hostile" / "bundle", labels=[f"<b onclick=x>{c}</b>" for c in range(10)], dataset=7, params="many")
    put(root / "many" / "bundle", labels=[f"class {c}" for c in range(1000)])
    pairs = [[c, c, 1] for c in range(700)] + [[c, c + 1, 2] for c in range(960, 999)]
    put(root / "many" / "bundle", ("accuracy", "images"), sum(n for *_, n in pairs))
    _answer(root / "many", lambda a: a.update(confusions=pairs, images=sum(n for *_, n in pairs)))
    _answer(root / "unsure", lambda a: a["not_sure"].update(threshold=1.0))
    _answer(root / "certain", lambda a: a.update(not_sure=None, no_threshold="no validation images"))


@pytest.fixture(scope="module")
def drive(shipped: Path, many_operators: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One visit of the browser to all pages: what it saw, what it asked for, what it was served."""
    root = tmp_path_factory.mktemp("served")
    zoo(root / "zoo")
    (root / "zoo" / "notes.txt").write_text("no image")
    web.lay(shipped, root / "good")
    web.lay(many_operators, root / "operators")
    _answer(root / "good", lambda a: a["not_sure"].update(threshold=THRESHOLD))
    for name in ("one", "apart", "lacking", *FACTS, *BROKEN):  # spoilt after they were laid: `lay` would refuse them
        shutil.copytree(root / "good", root / name)
    put(root / "one" / "bundle", models={"float32": read_json(shipped / "manifest.json")["models"]["float32"]})
    expected = root / "apart" / "bundle" / "sample" / "expected.json"
    facts = read_json(expected)
    facts["models"]["float32"]["logits"][2][0] += 1e-3
    write_json(expected, facts)
    (root / "lacking" / "bundle" / "model.int8.onnx").write_bytes(b"something else")
    _tell(root)
    shutil.rmtree(root / "missing" / "bundle")
    put(root / "newer" / "bundle", schema=2)
    (root / "tampered" / "bundle" / "model.onnx").write_bytes(b"something else")
    put(root / "squeezed" / "bundle", ("input", "resize"), "squeezed")
    (root / "damaged" / "bundle" / "manifest.json").write_text("{")
    put(root / "outside" / "bundle", ("models", "float32", "file"), "../../good/bundle/model.onnx")
    shutil.rmtree(root / "alone" / "ort")
    (root / "drive.html").write_text(DRIVER)
    server, elsewhere = _Server(root), _Server(tmp_path_factory.mktemp("elsewhere"))
    with running(server), running(elsewhere):
        plan: dict[str, Any] = {"images": IMAGES, "broken": list(BROKEN), "elsewhere": f"{elsewhere.address}/leak"}
        plan |= {"many": MANY, "renamed": RENAMED, "facts": FACTS}
        write_json(root / "plan.json", plan)
        log = tmp_path_factory.mktemp("log") / "net.json"
        profile = tmp_path_factory.mktemp("profile")
        assert CHROMIUM is not None
        command = [
            CHROMIUM,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--log-net-log={log}",
            f"{server.address}/drive.html",
        ]
        complaints = tmp_path_factory.mktemp("said") / "stderr"
        with complaints.open("w") as stream:  # a pipe that nobody empties would stop a browser that says much
            browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stream)
        try:
            finished = server.done.wait(300)
        finally:
            browser.terminate()
            try:
                browser.wait(60)  # it writes its log
            except subprocess.TimeoutExpired:
                browser.kill()
                browser.wait()
        said = complaints.read_text(errors="replace")[-2000:]
        assert finished, f"the page did not come to its end after {server.paths[-5:]}\n{said}"
        assert "error" not in server.found, server.found["error"]
        # Chromium itself asks for updates; what a page asks for has that page's address as its initiator.
        lines = [line for line in log.read_text(errors="replace").splitlines() if '"initiator":"http://127' in line]
        asked = {url for line in lines for url in re.findall(r'"url":"([a-z]+://[^"/]*)', line)}
        console = re.findall(r":(?:INFO|ERROR|WARNING):CONSOLE.*", complaints.read_text(errors="replace"))
        facts = {"leaked": elsewhere.paths, "asked": asked, "address": server.address, "console": console}
        return server.found | facts


@pytest.fixture(scope="module")
def answers(shipped: Path, script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The Python client's probabilities for the same images, by label."""
    bundle = script.Bundle(shipped)
    files = {path.name: path for path in zoo(tmp_path_factory.mktemp("python") / "zoo")}
    rows = {name: bundle(bundle.read(files[name])[None])[1][0] for name in IMAGES}
    return {name: dict(zip(bundle.labels, map(float, row), strict=True)) for name, row in rows.items()}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_dropped_in_gets_the_answer_that_python_gives(
    drive: dict[str, Any], answers: dict[str, Any], name: str
) -> None:
    seen, expected = drive["dropped"][name], answers[name]
    assert (seen["status"], seen["name"]) == ("", name)
    # The browser itself lays an image over black and makes 8 bits of 16: a level more or less. So it is with JPEG.
    exact = name not in ("alpha.png", "grey_alpha.png", "clear.png", "sixteen.png", "turned.jpg", "smooth.jpg")
    for label, probability in seen["top"]:
        assert probability == pytest.approx(expected[label], abs=1e-5 if exact else 0.05), label
    assert len(seen["top"]) == 5
    assert seen["top"][0][0] == max(expected, key=lambda label: float(expected[label]))


def test_bars_are_as_long_as_the_shares_beside_them(drive: dict[str, Any]) -> None:
    seen = drive["dropped"]["wide.png"]
    for (_, probability), (share, width) in zip(seen["top"], seen["shares"], strict=True):
        assert float(share.removesuffix(" %")) == pytest.approx(100 * probability, abs=0.051)
        assert float(width.removesuffix("%")) == pytest.approx(100 * probability, abs=0.01)
    assert re.fullmatch(r"[\d.]+ ms", seen["latency"])
    assert re.fullmatch(r", median of \d+ runs", seen["runs"])


def test_the_page_says_which_model_it_holds(drive: dict[str, Any]) -> None:
    assert drive["title"] == "resnet8 · digits"
    assert re.fullmatch(r"10 classes · top-1 [\d.]+ % on 797 test images · \d+ kB", drive["facts"])


def test_the_samples_and_the_selftest_work(drive: dict[str, Any]) -> None:
    assert drive["sample"]["name"] == "sample/1.png"
    said, kind = drive["selftest"]
    assert re.fullmatch(r"Self-test passed: 5 images, max \|d\| \S+ \(allowed \S+\)", said)
    assert kind == "passed"


def test_a_case_that_does_not_come_out_fails_the_selftest(drive: dict[str, Any]) -> None:
    said, kind = drive["apart"]
    assert said.startswith("Self-test FAILED: 5 images, max |d| 1.0e-03")
    assert kind == "failed"


@pytest.mark.parametrize("model", ["int8", "float16"])
def test_another_model_is_chosen_passes_its_selftest_and_answers_anew(drive: dict[str, Any], model: str) -> None:
    seen, before = drive["models"][model], drive["sample"]
    assert (seen["status"], seen["kind"]) == ("", "passed")
    assert seen["verdict"].startswith("Self-test passed: 5 images")
    assert seen["name"] == before["name"], "the image on the page is classified again"
    assert seen["top"] != before["top"]
    assert [label for label, _ in seen["top"]][:1] == [label for label, _ in before["top"]][:1]


@pytest.mark.parametrize("model", ["float32", "int8", "float16"])
def test_a_network_of_many_operators_passes_its_selftest(drive: dict[str, Any], model: str) -> None:
    verdict, kind = drive["operators"][model]
    assert verdict.startswith("Self-test passed: 5 images"), verdict
    assert kind == "passed"


def test_several_images_become_a_table_of_the_answers_that_python_gives(
    drive: dict[str, Any], answers: dict[str, Any]
) -> None:
    assert drive["alone"] is True, "the table is not there before it is needed"
    assert [cells[0] for cells, _ in drive["rows"]] == [RENAMED.get(name, name) for name in MANY]
    flags = set()
    for name, (cells, probability) in zip(MANY, drive["rows"], strict=True):
        if name == "notes.txt":
            assert len(cells) == 2
            continue
        first, second = sorted(answers[name].items(), key=lambda pair: -pair[1])[:2]
        assert cells[1] == first[0]
        assert probability == pytest.approx(first[1], abs=1e-5)
        assert cells[4].split(" · ")[0] == second[0]
        flags.add(first[1] < THRESHOLD)
        assert cells[3] == ("not sure" if first[1] < THRESHOLD else ""), name
    assert flags == {True, False}, "the images show both"
    assert drive["opened"] == MANY[0]


def test_the_table_is_saved_as_csv_that_no_spreadsheet_computes(drive: dict[str, Any], answers: dict[str, Any]) -> None:
    (name,), text, begin = drive["csv"]
    assert name == "answers.csv"
    assert bytes(begin) == codecs.BOM_UTF8, "Excel takes it for another encoding else"
    assert text.count("\r\n") == text.count("\n") == len(MANY) + 1
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert [row["image"] for row in rows] == [f"'{RENAMED[name]}" if name in RENAMED else name for name in MANY]
    for name, row in zip(MANY, rows, strict=True):
        if name == "notes.txt":
            assert row["error"]
            assert not (row["answer"] or row["probability"] or row["not_sure"])
            continue
        first, second = sorted(answers[name].items(), key=lambda pair: -pair[1])[:2]
        assert (row["answer"], row["second"], row["model"], row["error"]) == (first[0], second[0], "float32", "")
        assert float(row["probability"]) == pytest.approx(first[1], abs=1e-5)
        assert float(row["second_probability"]) == pytest.approx(second[1], abs=1e-5)
        assert row["not_sure"] == ("yes" if first[1] < THRESHOLD else "no")


def test_other_images_take_the_place_of_those_that_are_still_read(drive: dict[str, Any]) -> None:
    longest, rows = drive["replaced"]
    assert longest == len(MANY), "the first 200 were not gone on with"
    assert rows == drive["rows"]


def test_a_model_that_cannot_be_had_leaves_the_one_that_answers(drive: dict[str, Any]) -> None:
    page = drive["lacking"]
    assert page["status"].startswith("model.int8.onnx is not the file of the manifest")
    assert (page["model"], page["selftest"]) == ("float32", "passed")
    assert page["csv"] == drive["csv"][1]


@needs_node
def test_any_text_survives_the_csv_and_none_begins_a_formula() -> None:
    texts = ['a "b", c', "two\nlines", "\r\n", "=1", "+1", "-1", "@x", "\t=1", " =1", "", "ü", "'", "\uff1d1"]
    rows = [{"name": text, "best": {"label": text, "probability": 0.5}, "unsure": None, "model": "m"} for text in texts]
    code = 'const { csv } = await import(web + "several.mjs"); const rows = JSON.parse(process.argv[1]);'
    code += " console.log(JSON.stringify(csv(rows)));"
    written = list(csv.reader(io.StringIO(json.loads(javascript(code, json.dumps(rows))), newline=""), strict=True))[1:]
    assert len(written) == len(texts)
    for text, (name, label, probability, *others) in zip(texts, written, strict=True):
        assert name == label
        assert name in (text, f"'{text}")
        assert name[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")
        assert (probability, others) == ("0.500000", ["", "", "", "m", ""])


def test_another_model_makes_the_table_anew(drive: dict[str, Any]) -> None:
    before = [probability for _, probability in drive["rows"] if probability is not None]
    for model in ("int8", "float16"):
        rows = drive["models"][model]["rows"]
        assert [cells[0] for cells, _ in rows] == [cells[0] for cells, _ in drive["rows"]]
        assert [probability for _, probability in rows if probability is not None] != before


@pytest.mark.parametrize("name", IMAGES)
def test_an_answer_below_the_threshold_is_marked(drive: dict[str, Any], name: str) -> None:
    seen = drive["dropped"][name]
    assert seen["unsure"] == (seen["top"][0][1] < THRESHOLD)


def test_the_card_has_the_facts_of_the_manifest(drive: dict[str, Any], shipped: Path) -> None:
    manifest, values = read_json(shipped / "manifest.json"), [value for _, value in drive["card"]]
    model = manifest["models"]["float32"]
    low, high = wilson_pct(model["top1_pct"], manifest["accuracy"]["images"])
    assert values[:3] == [manifest["architecture"], f"{manifest['params']:,}", f"{manifest['macs']:,}"]
    assert f"{model['top1_pct']:.2f} % [{low:.2f}, {high:.2f}]" in values
    assert manifest["dataset"] in values
    assert any(manifest["method"] in value for value in values)
    for row in manifest["models"].values():
        (value,) = (value for name, value in drive["card"] if name == row["file"])
        assert f"{row['top1_pct']:.2f} %" in value
        assert manifest["files"][row["file"]]["sha256"][:12] in value


def test_the_matrix_has_every_count_under_its_labels(drive: dict[str, Any], shipped: Path) -> None:
    answers, labels = read_json(shipped / "answers.json"), read_json(shipped / "manifest.json")["labels"]
    head, *lines = drive["matrix"]
    assert [text for text, _ in head[2:]] == labels
    assert {scope for _, scope in head} == {"col"}
    assert [line[0] for line in lines] == [[label, "row"] for label in labels]
    cells = [[i, j, int(text)] for i, line in enumerate(lines) for j, (text, _) in enumerate(line[2:]) if text]
    assert cells == answers["confusions"]
    right = {i: n for i, j, n in cells if i == j}
    for i, line in enumerate(lines):
        share = 100 * right[i] / sum(n for j, _, n in cells if j == i)
        assert float(line[1][0].removesuffix(" %")) == pytest.approx(share, abs=0.51)


def test_the_threshold_is_told_with_what_it_keeps(drive: dict[str, Any], shipped: Path) -> None:
    told = read_json(shipped / "answers.json")["not_sure"]
    for row, name in zip(drive["kept"][1:], ("validation", "judging"), strict=True):
        count = told[name]
        answered, wrong, left = (float(cell.split(" %")[0]) for cell in row[1:])
        assert answered == pytest.approx(100 * count["answered"] / count["images"], abs=0.051)
        assert wrong == pytest.approx(100 * count["wrong"] / count["images"], abs=0.051)
        assert left == pytest.approx(100 * count["answered_wrong"] / count["answered"], abs=0.051)


def test_a_page_without_answers_or_with_spoilt_ones_says_so_and_works(drive: dict[str, Any]) -> None:
    for name in ("without", "edited", "reordered"):
        page = drive["about"][name]
        assert (page["state"], page["matrix"], page["threshold"], page["unsure"]) == ("ready", [], "", False)
        assert "answers.json" in page["counted"]
    assert len({drive["about"][name]["counted"] for name in ("without", "edited", "reordered")}) == 3


def test_a_threshold_is_obeyed_and_without_one_nothing_is_marked(drive: dict[str, Any]) -> None:
    assert drive["about"]["unsure"]["unsure"] is True
    assert drive["about"]["certain"]["unsure"] is False
    assert [drive["about"][name]["columns"] for name in ("unsure", "certain")] == [[5, 5, 5], [4, 4, 4]]
    assert drive["about"]["certain"]["threshold"]
    assert drive["about"]["certain"]["matrix"] == drive["matrix"]


def test_names_of_classes_are_text_and_no_elements(drive: dict[str, Any]) -> None:
    page = drive["about"]["hostile"]
    assert page["state"] == "ready"
    assert "b" not in page["kinds"]
    assert "bdi" in page["kinds"], "one written from right to left does not turn its sentence around"
    assert page["matrix"][0][2][0] == "<b onclick=x>0</b>"


def test_of_a_thousand_classes_the_most_confused_are_shown(drive: dict[str, Any]) -> None:
    page = drive["about"]["many"]
    assert page["state"] == "ready"
    assert [line[0][0] for line in page["matrix"][1:]] == [f"class {c}" for c in range(960, 1000)]
    assert {len(line) for line in page["matrix"]} == {42}
    assert page["matrix"][-1][1] == ["–", ""], "a class without images has no share"
    assert "1000" in page["counted"]


def test_the_camera_runs_between_two_presses_and_not_on_a_hidden_page(drive: dict[str, Any]) -> None:
    camera = drive["camera"]
    assert camera["before"] == 0, "nobody asks before the button is pressed"
    live, hidden, pressed, size = camera["on"]
    assert (live, hidden) == (1, False)
    assert re.fullmatch(r"\d+ × \d+", size)
    assert camera["off"][:2] == [0, True]
    assert camera["off"][2] != pressed
    assert camera["off"][3] is False, "the last picture stays"
    assert camera["hidden"] == 0
    assert camera["dropped"] == ["wide.png", 0, True]


def test_a_camera_that_cannot_be_had_is_a_sentence(drive: dict[str, Any]) -> None:
    refused = drive["camera"]["refused"]
    assert all(refused.values())
    assert len(set(refused.values())) == 5, "each reason has its own"


def test_nothing_is_said_in_the_console(drive: dict[str, Any]) -> None:
    """But for what the test itself tried, which the page's policy refused, and what a spoilt folder lacks."""
    tried = ("Content Security Policy", "Failed to load resource")
    assert [line for line in drive["console"] if not any(word in line for word in tried)] == []


def test_where_there_is_one_model_there_is_no_choice(drive: dict[str, Any]) -> None:
    assert drive["single"] == [True, drive["facts"]]
    assert drive["choice"]


def test_what_is_no_image_is_said_and_the_page_goes_on(drive: dict[str, Any]) -> None:
    assert drive["text"]["status"] == "notes.txt is not an image that this browser can read"
    assert drive["sample"]["status"] == ""


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_with_the_folder_is_said_in_words(drive: dict[str, Any], name: str) -> None:
    said, state = drive["broken"][name]
    assert BROKEN[name] in said
    assert state == "error"


def test_the_page_is_used_by_keyboard_and_fits_a_telephone(drive: dict[str, Any]) -> None:
    names = ["file", "camera", "save", "model", "selftest"]
    assert [name for name, *_ in drive["keyboard"] if not name.startswith("Sample")] == names
    assert len(drive["keyboard"]) == 10
    assert all(index == 0 and not disabled for _, index, disabled in drive["keyboard"])
    assert drive["width"] <= 360


def test_no_request_leaves_the_machine(drive: dict[str, Any]) -> None:
    """By the browser's own log of every request, and because the page may not, even where a script in it would."""
    assert drive["resources"]
    assert all(name.startswith(f"{drive['address']}/good/") for name in drive["resources"])
    assert drive["asked"] == {drive["address"]}
    assert (drive["fetched"], drive["evaluated"], drive["leaked"]) == ("refused", "refused", [])
