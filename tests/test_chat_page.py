"""The chat at `/` of a real server, in headless Chromium if it is installed."""

from __future__ import annotations

import base64
import hashlib
import re
import time

import httpx
import pytest

pytest.importorskip("fastapi", reason="the server is not installed: pip install '.[test]'")

from chromium import ActionChains, By, Keys, all_of, look, one
from running_server import QUESTION, Running, demo_ensemble, running
from trace_cases import toy_ensemble

from unite_ext import Member, UniteEnsemble

MARKUP = '<img src=x onerror="document.title=1"><b>bold</b> &amp;'


@pytest.fixture(scope="module")
def server():
    with running(demo_ensemble()) as server:
        yield server


@pytest.fixture(scope="module")
def talker():
    """A server whose answers go on and on."""
    members = [Member(m.model, m.tokenizer, chat_template="plain") for m in toy_ensemble().members]
    with running(UniteEnsemble(members)) as server:
        yield server


@pytest.fixture
def show(browser):
    """Opens the page of a server; afterwards the browser has reported nothing."""

    def open_page(server: Running, **appearance) -> None:
        look(browser, **appearance)
        browser.get(server.url + "/")
        wait(lambda: one(browser, "#k").get_attribute("placeholder") or one(browser, "#status").text)

    yield open_page
    assert browser.get_log("browser") == []


def wait(condition, seconds: float = 30):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return found


def ask(browser, text: str, *, until_done: bool = True) -> None:
    one(browser, "#question").send_keys(text, Keys.ENTER)
    if until_done:
        wait(lambda: one(browser, "#send").is_displayed())


def text_of(browser, selector: str) -> str:
    return one(browser, selector).get_attribute("textContent")


def traced(server: Running, **fields) -> dict:
    """What the interface says to the same question: the answer, and its trace."""
    body = {"model": "unite", "messages": [{"role": "user", "content": QUESTION}]} | fields
    body["unite"] = {"trace": True} | fields.get("unite", {})
    [choice] = server.post("/v1/chat/completions", body).json()["choices"]
    [trace] = choice["unite"]["trace"]["traces"]
    return trace


def test_an_example_is_answered_as_the_interface_does(browser, show, server):
    show(server)
    assert one(browser, "#members").text == "qwen2 (primary) + mistral"
    all_of(browser, "#examples button")[0].click()
    wait(lambda: one(browser, "#send").is_displayed())
    trace = traced(server)
    assert one(browser, ".user").text == QUESTION
    tokens = all_of(browser, ".token")
    assert len(tokens) == len(trace["steps"]) > 10
    for token, step in zip(tokens, trace["steps"]):
        assert step["decided"] in token.get_attribute("class").split()
        assert token.get_attribute("textContent").strip("■") == step["piece"]
    assert (
        f"agreement {sum(s['decided'] == 'agreement' for s in trace['steps'])}" in one(browser, ".answer .legend").text
    )
    assert not one(browser, "#empty").is_displayed()
    assert not one(browser, "#stop").is_displayed()


def test_votes_by_mouse_and_by_keyboard(browser, show, server):
    show(server)
    ask(browser, QUESTION)
    steps = traced(server)["steps"]
    assert not one(browser, "#panel").is_displayed()
    assert one(browser, "#hint").is_displayed()
    ActionChains(browser).move_to_element(all_of(browser, ".token")[4]).perform()
    assert one(browser, "#panel h2").text == f"Token 5 of {len(steps)}"
    assert not one(browser, "#hint").is_displayed()
    assert len(all_of(browser, "#panel tbody tr")) == min(20, len(steps[4]["averages"]))
    assert [th.text for th in all_of(browser, "#panel thead th")] == ["average", "qwen2", "mistral"]
    one(browser, ".token[tabindex='0']").send_keys(Keys.ARROW_RIGHT)
    assert one(browser, "#panel h2").text == f"Token 2 of {len(steps)}"
    browser.switch_to.active_element.send_keys(Keys.END)
    assert one(browser, "#panel h2").text == f"Token {len(steps)} of {len(steps)}"
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not one(browser, "#panel").is_displayed()

    ask(browser, "And how many has Omar?")  # a second answer, which shares the panel
    assert len(all_of(browser, ".answer")) == 2
    all_of(browser, ".answer:last-child .token")[0].click()
    assert one(browser, "#panel h2").text.startswith("Token 1 of ")
    all_of(browser, ".answer:nth-child(2) .token")[1].click()
    assert len(all_of(browser, ".token[aria-selected='true']")) == 1


def test_settings_are_those_of_the_request(browser, show, server):
    show(server)
    one(browser, "#settings").click()
    assert one(browser, "#settings").get_attribute("aria-expanded") == "true"
    ranges = all_of(browser, "#weights input")
    ranges[0].send_keys(Keys.HOME)
    ranges[1].send_keys(Keys.END)
    assert [o.text for o in all_of(browser, "#weights output")] == ["0.0", "4.0"]
    one(browser, "#k").send_keys("3")
    one(browser, "#max-tokens").send_keys("7")
    ask(browser, QUESTION)
    trace = traced(server, max_tokens=7, unite={"k": 3, "weights": [0, 4]})
    assert len(all_of(browser, ".token")) == 7
    assert text_of(browser, ".answer .tokens") == trace["text"]
    assert one(browser, ".answer .about p").text == "Ended by the limit of tokens."
    all_of(browser, ".token")[0].click()
    assert len(all_of(browser, "#panel tbody tr")) == len(trace["steps"][0]["averages"]) <= 6
    one(browser, "#temperature").send_keys("9")
    ask(browser, QUESTION)
    assert "temperature" in one(browser, "#status").text
    [refused] = browser.get_log("browser")  # the browser's own word of it
    assert "400" in refused["message"]
    assert one(browser, "#question").get_attribute("value") == QUESTION
    assert len(all_of(browser, ".answer")) == 1


def test_members_may_vote_on_bytes(browser, show, server):
    show(server)
    one(browser, "#settings").click()
    one(browser, "#boundaries option[value='exact']").click()
    one(browser, "#max-tokens").send_keys("4")
    ask(browser, QUESTION)
    trace = traced(server, max_tokens=4, unite={"boundaries": "exact"})
    assert text_of(browser, ".answer .tokens") == trace["text"]
    assert len(all_of(browser, ".token")) == len(trace["steps"]) >= len(trace["text"].encode())
    all_of(browser, ".token")[0].click()
    assert one(browser, "#panel h2").text.startswith("Byte 1 of ")


def test_stop_keeps_what_is_there_and_frees_the_server(browser, show, talker):
    show(talker)
    ask(browser, "Go on.", until_done=False)
    wait(lambda: len(all_of(browser, ".token")) > 5)
    assert not one(browser, "#send").is_displayed()
    one(browser, "#stop").click()
    wait(lambda: one(browser, "#send").is_displayed())
    talker.wait_until_idle(5)
    assert one(browser, ".answer .about p").text == "Stopped."
    kept = len(all_of(browser, ".token"))
    assert 5 < kept < 1000
    one(browser, "#clear").click()
    assert all_of(browser, ".answer") == []
    assert one(browser, "#empty").is_displayed()
    ask(browser, "Go on.", until_done=False)
    wait(lambda: len(all_of(browser, ".token")) > 2)
    one(browser, "#stop").send_keys(Keys.ESCAPE)
    wait(lambda: one(browser, "#send").is_displayed())


def test_texts_are_text_and_no_markup(browser, show, server):
    show(server)
    ask(browser, MARKUP)
    assert one(browser, ".user").text == MARKUP
    assert all_of(browser, "img, b b") == []
    assert browser.title == "UNITE chat"


def test_the_policy_lets_nothing_else_run(browser, show, server):
    reply = httpx.get(server.url + "/")
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    for kind in ("script", "style"):
        [source] = re.findall(rf"<{kind}>(.*?)</{kind}>", reply.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert not re.search(r"""(src|href)=(?!"data:)|url\(|https?://|@import|innerHTML|eval\(""", reply.text)
    show(server)
    browser.execute_script(
        "const s = document.createElement('script'); s.textContent = 'document.title = 1'; document.body.append(s);"
    )
    assert browser.title == "UNITE chat"
    refused = browser.get_log("browser")
    assert len(refused) == 1
    assert "Content Security Policy" in refused[0]["message"]


def test_a_key_is_asked_for(browser, show):
    with running(demo_ensemble(), api_keys=("secret",)) as server:
        show(server)
        assert "API key" in one(browser, "#status").text
        one(browser, "#key").send_keys("secret", Keys.TAB)
        wait(lambda: "qwen2" in one(browser, "#members").text)
        ask(browser, QUESTION)
        assert len(all_of(browser, ".token")) > 10
        refused = browser.get_log("browser")
        assert [entry["source"] for entry in refused] == ["network"]
        assert "401" in refused[0]["message"]


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 700, 1280])
def test_it_fits_every_screen(browser, show, server, width, dark):
    show(server, width=width, height=740, dark=dark)
    one(browser, "#settings").click()
    one(browser, "#settings").click()
    ask(browser, QUESTION)
    all_of(browser, ".token")[3].click()
    assert one(browser, "#panel").is_displayed()
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    ink, paper = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
    )
    brightness = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, paper)]
    assert (brightness[0] > brightness[1]) == dark
    if width < 800:
        one(browser, "#panel .close").click()
    else:
        browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not one(browser, "#panel").is_displayed()
    assert one(browser, "#send").find_element(By.XPATH, "..").is_displayed()
