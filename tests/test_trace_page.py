"""The page of a trace in headless Chromium, if it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from chromium import ActionChains, By, Keys, all_of, look, one
from trace_cases import made_up_trace, toy_ensemble

from unite_ext.trace import Trace, save_traces

WORDS = ["Once", " upon", " a", " time", "\n", " there", " was"]


@pytest.fixture
def show(browser, tmp_path):
    """Opens the page of some traces; afterwards the browser has reported nothing."""

    def open_page(*traces: Trace, width: int = 1280, height: int = 900, dark: bool = False, at: str = "") -> Path:
        path = tmp_path / "trace.html"
        save_traces(traces, path)
        look(browser, width=width, height=height, dark=dark)
        browser.get(path.as_uri() + at)
        return path

    yield open_page
    assert browser.get_log("browser") == []


def panel_title(browser) -> str:
    return one(browser, "#panel h2").text


def shown_text(browser, selector: str) -> str:
    """Also what has scrolled out of view."""
    return one(browser, selector).get_attribute("textContent")


def test_tokens_and_totals_are_those_of_the_trace(browser, show):
    trace = toy_ensemble().trace("James", max_new_tokens=60, min_new_tokens=60)
    show(trace)
    tokens = all_of(browser, ".token")
    assert len(tokens) == 60
    for decided in ("agreement", "primary", "overruled"):
        assert len(all_of(browser, f".token.{decided}")) == trace.count(decided)
    totals = one(browser, "#totals").text
    assert f"agreement ({trace.count('agreement')} of 60)" in totals
    for name, times in zip(trace.members, trace.overruled):
        assert f"{name} {times} (" in " ".join(totals.split())
    assert one(browser, "#prompt").text == "James"
    unmarked = shown_text(browser, "#text")
    assert all(step.piece.strip() in unmarked for step in trace.steps if step.piece.isprintable())


def test_keyboard_goes_through_the_tokens(browser, show):
    trace = made_up_trace(WORDS)
    show(trace)
    one(browser, "#text .token[tabindex='0']").send_keys(Keys.ARROW_RIGHT)
    assert panel_title(browser) == "Token 2 of 7"
    assert browser.switch_to.active_element.text.strip() == "upon"
    assert len(all_of(browser, ".token[tabindex='0']")) == 1
    assert len(all_of(browser, ".token[aria-selected='true']")) == 1
    keys = (Keys.END, Keys.ARROW_RIGHT, Keys.ARROW_LEFT, Keys.HOME, Keys.ARROW_UP, Keys.ARROW_DOWN)
    for key, expected in zip(keys, (7, 7, 6, 1, 1, 2)):
        browser.switch_to.active_element.send_keys(key)
        assert panel_title(browser) == f"Token {expected} of 7"
    overruled = [i + 1 for i, step in enumerate(trace.steps) if step.decided == "overruled"]
    browser.switch_to.active_element.send_keys(Keys.HOME)
    browser.switch_to.active_element.send_keys("n")
    assert panel_title(browser) == f"Token {next(i for i in [*overruled, overruled[0]] if i > 1)} of 7"
    assert browser.execute_script("return location.hash") == f"#{next(i for i in overruled if i > 1)}"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not one(browser, "#panel").is_displayed()


def test_a_token_shows_its_union(browser, show):
    trace = toy_ensemble().trace("James", max_new_tokens=12, min_new_tokens=12)
    show(trace, at="#4")
    step = trace.steps[3]
    assert panel_title(browser) == "Token 4 of 12"
    assert [h.text for h in all_of(browser, "#panel thead th")] == ["average", *trace.members]
    order = sorted(range(len(step.averages)), key=lambda s: (s != step.winner, -step.averages[s], s))
    rows = all_of(browser, "#panel tbody tr")
    assert len(rows) == len(order)
    for slot, row in zip(order, rows):
        numbers = [n.text for n in row.find_elements(By.CSS_SELECTOR, ".number")]
        for number, p in zip(numbers, [step.averages[slot], *step.probs[slot]]):
            assert number == ("0" if p == 0 else "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0"))
        track = row.find_elements(By.CSS_SELECTOR, ".cell")[0].find_element(By.CSS_SELECTOR, ".line").rect["width"]
        bar = row.find_elements(By.CSS_SELECTOR, ".bar")[0].rect["width"]
        assert bar == pytest.approx(max(1, track * step.averages[slot]), abs=1)
    for slot, row in zip(order, rows):
        cells = row.find_elements(By.CSS_SELECTOR, "td .line > :first-child")
        for m, cell in enumerate(cells):
            own = trace.token_text(m, step.ids[slot][m]).replace(" ", "␣").replace("\n", "↵").replace("\t", "⇥")
            own = "".join(c if c.isprintable() else f"U+{ord(c):04X}" for c in own)
            own += "…" if trace.is_first_sub_token(step, slot, m) else ""
            assert cell.get_attribute("textContent") == (own or "–")
    assert any(trace.is_first_sub_token(step, slot, m) for slot in order for m in range(2))
    for m, favorite in enumerate(step.favorites):
        assert "own" in rows[order.index(favorite)].find_elements(By.CSS_SELECTOR, "td")[m].get_attribute("class")


def test_the_slot_taken_comes_first(browser, show):
    """Also where another has a larger average."""
    trace = made_up_trace(WORDS)
    unlikely = next(i for i, step in enumerate(trace.steps) if step.averages[0] < max(step.averages))
    show(trace, at=f"#{unlikely + 1}")
    rows = all_of(browser, "#panel tbody tr")
    assert [r.get_attribute("class") for r in rows] == ["taken"] + [""] * 11
    averages = [float(f"0{r.find_element(By.CSS_SELECTOR, '.number').text}") for r in rows]
    assert averages[1:] == sorted(averages[1:], reverse=True)
    assert "Another has a larger average" in one(browser, "#panel").text


def test_the_pointer_shows_and_leaves(browser, show):
    show(made_up_trace(WORDS))
    tokens = all_of(browser, ".token")
    tokens[5].click()
    ActionChains(browser).move_to_element(tokens[1]).perform()
    assert panel_title(browser) == "Token 2 of 7"
    ActionChains(browser).move_to_element(one(browser, "h1")).perform()
    assert panel_title(browser) == "Token 6 of 7"


def test_the_legend_leads_to_the_next(browser, show):
    trace = made_up_trace(WORDS * 3)
    show(trace)
    tokens = [i + 1 for i, step in enumerate(trace.steps) if step.decided == "overruled"]
    button = next(b for b in all_of(browser, "#legend button") if "overruled" in b.text)
    first = panel_title(browser)
    assert first == f"Token {tokens[0]} of 21"
    for expected in [*tokens[1:], tokens[0]]:
        button.click()
        assert panel_title(browser) == f"Token {expected} of 21"


HOSTILE = [
    "<script>document.title = 'owned'</script>", "<img src=x onerror=\"document.title='owned'\">", "</script>", "<!--",
    "&lt;b&gt;", "\u202egnol", "\x00\x1b[2J", "a\u00a0b", "{{x}}", "`${document.title='owned'}`",
]  # fmt: skip


def test_texts_are_shown_and_never_run(browser, show):
    """In the text, the tables, the prompt, the names and the options."""
    trace = made_up_trace(HOSTILE)
    evil = HOSTILE[0]
    trace = Trace(**{
        **vars(trace), "members": [evil, HOSTILE[1], "third"], "options": {"method": evil},
        "prompt": [{"role": evil, "content": HOSTILE[1]}],
    })  # fmt: skip
    show(trace)
    tokens = all_of(browser, ".token")
    assert [t.text for t in tokens[:5]] == HOSTILE[:5]
    assert tokens[5].text == "U+202Egnol"
    assert tokens[6].text == "U+0000U+001B[2J"
    assert tokens[7].text.replace("\u00a0", " ") == "a b"
    for token in tokens:
        token.click()
        assert all_of(browser, "#panel tbody tr")
    tokens[7].click()
    assert all_of(browser, "#panel .text")[-1].text.startswith("␣aU+00A0b")  # in a table any space counts
    assert evil in one(browser, "#members").text
    assert evil in one(browser, "#options").text
    assert HOSTILE[1] in one(browser, "#prompt").text
    assert not all_of(browser, "img, #text script, #panel script")
    assert browser.title.startswith("UNITE: ")
    assert len(all_of(browser, "script")) == 2


def test_the_policy_stops_scripts_that_are_not_the_pages(browser, show):
    """A second line of defence, were a text ever to become markup."""
    show(made_up_trace(WORDS))
    browser.execute_script(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.owned = 1'}))"
    )
    assert browser.execute_script("return window.owned") is None
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_bytes_ends_and_cuts_have_marks(browser, show):
    trace = made_up_trace(["", "é", "abc", ""])
    steps = list(trace.steps)
    half = [{**names} for names in trace.tokens]
    half[0][steps[0].ids[0][0]] = "<0xC3>"
    half[0][steps[3].ids[0][0]] = "</s>"
    steps[2] = type(steps[2])(**{**vars(steps[2]), "piece": "a", "cut": "bc"})
    eos = [[steps[3].ids[0][0]], [], []]
    show(Trace(**{**vars(trace), "steps": steps, "tokens": half, "eos_token_ids": eos}))
    tokens = all_of(browser, ".token")
    assert [t.text for t in tokens] == ["<0xC3>", "é", "abc", "■"]
    assert one(browser, ".cut").text == "bc"
    assert tokens[3].get_attribute("aria-label") == "end of text"


def test_several_texts_in_one_page(browser, show):
    path = show(made_up_trace(WORDS), made_up_trace(["One", " more"], seed=1))
    choice = one(browser, "#choose select")
    assert [o.text for o in choice.find_elements(By.TAG_NAME, "option")] == [
        "1: Once upon a time there was",
        "2: One more",
    ]
    choice.send_keys(Keys.ARROW_DOWN)
    assert len(all_of(browser, ".token")) == 2
    all_of(browser, ".token")[1].click()
    assert browser.execute_script("return location.hash") == "#2.2"
    browser.get("about:blank")
    browser.get(path.as_uri() + "#2.2")
    assert panel_title(browser) == "Token 2 of 2"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("members", [3, 8])
def test_a_phone_shows_all_of_it(browser, show, dark, members):
    """Nothing is wider than the screen; the union is at its foot, and can be put away."""
    show(made_up_trace(WORDS * 20, members=members), width=360, height=740, dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") == 360
    panel = one(browser, "#panel")
    assert not panel.is_displayed()
    tokens = all_of(browser, ".token")
    low = next(i for i, token in enumerate(tokens) if token.rect["y"] > 500)  # where the panel will be
    for token, number in ((tokens[low], low + 1), (tokens[-1], 140)):
        browser.execute_script("arguments[0].click()", token)
        assert panel_title(browser) == f"Token {number} of 140"
        bottom = browser.execute_script("return arguments[0].getBoundingClientRect().bottom", token)
        assert bottom < browser.execute_script("return arguments[0].getBoundingClientRect().top", panel)
    assert panel.rect["width"] == 360
    assert browser.execute_script("return arguments[0].getBoundingClientRect().bottom", panel) == 740
    browser.execute_script("arguments[0].scrollLeft = 40", panel)
    assert browser.execute_script("return arguments[0].scrollLeft", panel) == (40 if members == 8 else 0)
    one(browser, "#panel .close").click()
    assert not panel.is_displayed()


def contrast(browser, selector: str) -> float:
    """WCAG contrast ratio of an element's text against the nearest background behind it."""
    return browser.execute_script(
        """
        const channels = (color) => color.match(/[\\d.]+/g).map(Number);
        const luminance = (color) => {
          const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
          const [r, g, b] = channels(color).map((v) => linear(v / 255));
          return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const element = document.querySelector(arguments[0]);
        let behind = element;
        while (channels(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement;
        const [low, high] = [element, behind]
          .map((e, i) => luminance(getComputedStyle(e)[i ? "backgroundColor" : "color"])).sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
        """,
        selector,
    )


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_in_light_and_dark(browser, show, dark):
    trace = made_up_trace(WORDS * 6)
    gated = type(trace.steps[0])(**{**vars(trace.steps[0]), "decided": "gated"})
    show(Trace(**{**vars(trace), "steps": [gated, *trace.steps[1:]]}), dark=dark)
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(20, 23, 26)" if dark else "rgb(252, 252, 250)")
    for selector in (
        ".agreement",
        ".primary",
        ".overruled",
        ".gated",
        "#prompt",
        "#options",
        ".number",
        ".taken .text",
    ):
        assert contrast(browser, selector) >= 4.5, selector


def test_long_unions_come_in_part(browser, show):
    show(made_up_trace(["a", "b"], members=2, slots=300))
    all_of(browser, ".token")[0].click()
    assert len(all_of(browser, "#panel tbody tr")) == 20
    one(browser, "#panel .more").click()
    assert len(all_of(browser, "#panel tbody tr")) == 300


def test_two_thousand_tokens(browser, show, tmp_path):
    show(made_up_trace(WORDS * 286), at="#1990")
    assert len(all_of(browser, ".token")) == 2002
    assert panel_title(browser) == "Token 1990 of 2002"
    shot = tmp_path / "shot.png"
    assert browser.save_screenshot(str(shot))
    assert shot.stat().st_size > 10_000


def test_a_notebook_shows_it_in_a_frame(browser, show, tmp_path):
    show(made_up_trace(["x"]))  # for its check of what the browser reports
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html><title>notebook</title>{made_up_trace(WORDS)._repr_html_()}")
    browser.get(notebook.as_uri())
    browser.switch_to.frame(0)
    all_of(browser, ".token")[3].click()
    assert panel_title(browser) == "Token 4 of 7"
    browser.switch_to.default_content()
    assert browser.title == "notebook"


def test_without_scripts_the_text_is_there(browser, show):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        show(made_up_trace([*WORDS, "<b>"]))
        source = browser.execute_cdp_cmd("DOM.getDocument", {"depth": -1})
        [frame] = [n for n in _nodes(source["root"]) if n["nodeName"] == "PRE"]
        assert frame["children"][0]["nodeValue"] == "".join([*WORDS, "<b>"])
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def _nodes(node):
    yield node
    for child in node.get("children", ()):
        yield from _nodes(child)
