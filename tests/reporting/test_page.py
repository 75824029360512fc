"""The page: well-formed, loading nothing, escaping everything, hiding secrets."""

import dataclasses
import html.parser
import json
import re

import pytest
from reporting.fake_run import BEGIN, FakeHealth, write_run

from glm_jax.errors import UserError
from glm_jax.reporting import units
from glm_jax.reporting.overview import overview
from glm_jax.reporting.page import render
from glm_jax.reporting.run import Run, read_run


class Page(html.parser.HTMLParser):
    """Elements in order as (tag, attributes), and the text; fails where tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.texts, self._open = [], [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def tags(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.elements if tag == name]


def rendered(run: Run) -> str:
    return render(run, overview(run.history, run.config, BEGIN), BEGIN)


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> Run:
    workdir = tmp_path_factory.mktemp("runs") / "glm-large"
    health = write_run(workdir)
    return read_run(workdir, lambda _: health)


@pytest.fixture(scope="module")
def text(made_up) -> str:
    return rendered(made_up)


def changed_config(run: Run, **values) -> Run:
    return dataclasses.replace(run, config=run.config | values)


def test_the_page_has_every_part(text):
    page = Page(text)
    for heading in (
        "Time", "Loss", "Answers", "Optimisation and speed", "Validation", "Samples", "Evaluations",
        "Checkpoints", "Events", "Versions and devices", "Config",
    ):  # fmt: skip
        assert heading in page.texts
    assert "5,000 of 5,000" in page.text
    assert "rows 665,856–666,111" in page.text
    assert "jax 0.10.1 → 0.10.2" in page.text
    assert "✗ params/d/12 does not match its digest" in page.text
    assert "1 unreadable line of metrics.jsonl left out" in page.text
    assert "334,940,160" in page.text
    assert "goodput 66 %" in page.text
    assert "of 197 TFLOP/s a device: 6 N tokens + 6 V D targets + 12 L H d pairs" in page.text
    assert "between sessions 4 h 00 min" in page.text


def test_the_page_loads_nothing(text):
    page = Page(text)
    loading = {"src", "href", "srcset", "data", "action", "poster", "background"}
    assert not [a for _, attributes in page.elements for a in attributes if a in loading]
    assert not {"link", "iframe", "img", "object", "embed", "base"} & {
        tag for tag, _ in page.elements
    }
    assert "://" not in text
    assert "@import" not in text
    assert "url(" not in text
    (policy,) = (a["content"] for a in page.tags("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'; ")


def test_the_script_finds_its_panels(text):
    page = Page(text)
    data = json.loads(re.search('id="figures">(.*?)</script>', text)[1])
    numbers = [int(svg["data-panel"]) for svg in page.tags("svg") if "data-panel" in svg]
    assert numbers == list(range(len(data["panels"])))
    first = data["panels"][0]["curves"]
    assert [curve["name"] for curve in first] == ["train", "valid."]
    assert first[0]["y"][first[0]["x"].index(820)] is None


def test_answers_are_marked_and_equal_ones_share_a_row(text):
    page = Page(text)
    assert "2,500 – 5,000" in page.texts
    assert len(page.tags("mark")) == 3 + 3 * 2 + 3 * 2
    assert [cell for cell in page.tags("td") if cell.get("lang") == "zh-Hans"]
    assert "上海" in page.texts
    assert "She put on her coat & hat." in page.texts


ATTACK = "</script></title></td>\"'><script>alert(1)</script><img src=x onerror=alert(1)>&amp;"


def test_nothing_from_the_run_is_markup(tmp_path):
    workdir = tmp_path / "run <b>"
    workdir.mkdir()
    config = {"model": {ATTACK: ATTACK}, ATTACK: {ATTACK: [ATTACK]}, "data": {"dir": ATTACK}}
    (workdir / "config.json").write_text(json.dumps(config))
    about = {"versions": {ATTACK: ATTACK}, "device": ATTACK, "mesh": ATTACK, "num_devices": 2}
    loss = {"loss": 1.0, f"loss/{ATTACK}": 2.0, f"exact_match/{ATTACK}": 0.5}
    lines = [
        ("started", about),
        ("resumed", about | {"device": ATTACK + "2"}),
        ("train", loss),
        ("validation", loss),
        ("samples", {"filled": [[ATTACK, ATTACK, ""], "no list", [1], []]}),
        ("samples", {"filled": ATTACK}),
        ("bad_step", {"reason": ATTACK, "rows": ATTACK}),
        ("fallback", {"reason": ATTACK, "moved_to": ATTACK, "bad_step": ATTACK}),
        ("rewound", {"from_step": ATTACK, "skipped_rows": [ATTACK, 1]}),
        (ATTACK, {ATTACK: ATTACK}),
        ("stopped", {"reason": ATTACK}),
    ]
    with (workdir / "metrics.jsonl").open("w") as file:
        for kind, values in lines:
            file.write(json.dumps({"step": 1, "kind": kind, "time": 1e18} | values) + "\n")
    evaluation = {"step": ATTACK, "task": ATTACK, ATTACK: {ATTACK: {ATTACK: 1.0}}}
    (workdir / "evaluations.jsonl").write_text(json.dumps(evaluation))
    health = [FakeHealth(1, False, ATTACK, 5, None)]
    page = Page(rendered(read_run(workdir, lambda _: health)))
    assert [a.get("type") for a in page.tags("script")] == ["application/json", None]
    assert page.tags("img") == []
    assert not [a for _, attributes in page.elements for a in attributes if a.startswith("on")]


def test_secrets_are_not_shown_and_numbers_and_paths_are(made_up, tmp_path):
    secret = "hunter2-" * 3
    config = {
        "objective": {"token_weight": 0.25},
        "data": {"tokenizer": "/data/my-tokenizer"},
        "hub": {
            "hub_token": secret,
            "apiKey": secret,
            "keys": [secret],
            "nested": {"secret": secret},
        },
        "password": secret,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    text = rendered(read_run(tmp_path, lambda _: []))
    assert "hunter2" not in text
    assert text.count("(redacted)") == 5
    assert "0.25" in text
    assert "/data/my-tokenizer" in text


def test_fields_that_differ_from_the_defaults_stand_out(text):
    page = Page(text)
    assert "3 of" in page.text
    assert "default 12" in page.texts  # num_layers is 24
    assert len([row for row in page.tags("tr") if row.get("class") == "differs"]) == 8


def test_a_run_without_figures_has_a_page(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    page = Page(rendered(read_run(tmp_path, lambda _: [])))
    assert "nothing was logged yet" in page.texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no run: .*config.json is missing"),
        ("{", "is not JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_a_folder_that_holds_no_run(tmp_path, content, message):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path, lambda _: [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.number(None), "–"),
        (units.number(2.23456), "2.235"),
        (units.number(1234567), "1,234,567"),
        (units.number(4e-5), "4e-5"),
        (units.number(0.99999), "1.0000"),
        (units.number(float("nan")), "–"),
        (units.short(0.05), "0.05"),
        (units.short(2_500_000), "2.5M"),
        (units.amount(334_940_160), "335 M"),
        (units.amount(8163.7), "8,164"),
        (units.amount(None), "–"),
        (units.percent(0.021), "2.1 %"),
        (units.percent(0.62), "62 %"),
        (units.percent(1e-5), "< 0.1 %"),
        (units.duration(5.25), "5.2 s"),
        (units.duration(3599), "1 h 00 min"),
        (units.duration(3 * 86400), "3 d 0 h"),
        (units.size(1536), "1.5 KiB"),
        (units.moment(0), "1970-01-01 00:00 UTC"),
        (units.moment(1e18), "–"),
        (units.moment(None), "–"),
    ],
)
def test_units(text, expected):
    assert text == expected
