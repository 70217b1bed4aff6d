"""What all pages have in common: texts are escaped, pictures are inside, nothing is loaded, any browser shows them."""

import base64
import io

import pytest
from jinja2 import UndefinedError
from PIL import Image
from support.browser import SCHEMES, WIDTHS_PX, opened, overflow_px, serious

from finetune.pages import html

HOSTILE = "<script>document.title='taken'</script><img src=http://example.org/x.png>"


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A small page of the common look, in a template of its own."""
    (tmp_path / "one.html").write_text(
        '{% extends "page.html" %}{% block title %}{{ title }}{% endblock %}{% block header %}<h1>{{ title }}</h1>'
        '{% endblock %}{% block content %}<p class="good">{{ said }}</p><p class="soft">soft</p>'
        '<img src="{{ picture }}" alt="a square" width="64" height="64">'
        '<pre tabindex="0">{{ "x" * 300 }}</pre><p><a href="#content">up</a> {{ "y" * 300 }}</p>{% endblock %}'
    )
    html._environment.cache_clear()
    monkeypatch.setattr(html, "TEMPLATES", [tmp_path, html.TEMPLATES])
    yield tmp_path / "page.html"
    html._environment.cache_clear()


def written(page, **values):
    picture = html.inlined(Image.new("RGB", (64, 64), "teal"), 64)
    html.write_page(html.render("one.html", picture=picture, **values), page)
    return page


@pytest.mark.parametrize("width", WIDTHS_PX)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_page_is_right_wide_and_narrow_light_and_dark(browser, page, width, scheme):
    with opened(browser, written(page, title="Title", said="fine"), width, scheme) as shown:
        assert shown.title() == "Title" and not serious(shown) and overflow_px(shown) == 0


def test_texts_are_shown_as_text_whatever_is_in_them(browser, page):
    with opened(browser, written(page, title=HOSTILE, said=HOSTILE)) as shown:
        assert shown.title() == HOSTILE and shown.locator("p.good").inner_text() == HOSTILE
        assert shown.locator("img").count() == 1


def test_what_a_template_names_and_is_not_given_is_an_error(page):
    with pytest.raises(UndefinedError):
        html.render("one.html", title="x")


def test_a_picture_is_inside_and_no_larger_than_asked():
    source = html.inlined(Image.effect_noise((400, 200), 60).convert("RGB"), 100)
    head, _, body = source.partition(",")
    with Image.open(io.BytesIO(base64.b64decode(body))) as found:
        assert found.size == (100, 50) and head == "data:image/jpeg;base64"
    assert html.inlined(Image.new("RGB", (64, 64), "teal"), 100).startswith("data:image/png")


def test_a_lone_surrogate_costs_no_page(page):
    assert "\ufffd" in written(page, title="a\ud800b", said="x").read_text() or "a?b" in page.read_text()
