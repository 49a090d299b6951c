"""The report works in a real browser: tabs, genes, tables, pairs; it loads nothing, and names stay text."""

import shutil

import numpy as np
import pandas as pd
import pytest

import sagefm as sg

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.process,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium and chromedriver here"),
]
EVIL = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Report of two slides, one gene of which and one label have names that try to be more."""
    adata = sg.datasets.simulated_visium(12, 12, n_genes=9_000)
    adata.obs["slide"] = np.where(adata.obs["array_row"] < 6, "up", "down")
    adata.obs["label"] = pd.Categorical(np.where(adata.obs["array_row"] < 3, EVIL, "plain"))
    sg.pp.neighborhood_graph(adata, library_key="slide")
    path = tmp_path_factory.mktemp("report") / "report 'a' & b.html"
    pairs = [("CXCL12", "CXCR4"), ("CSF1", "CSF1R")]
    genes = ["KRT8", "COL1A1", "CD74"]
    return sg.report(adata, path, "sagefm-nano", genes=genes, interactions=pairs, color=["label"], title=EVIL)


@pytest.fixture(scope="module", params=[(1200, 900), (390, 800)], ids=["desktop", "phone"])
def browser(request, page):
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    width, height = request.param
    for option in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", f"--window-size={width},{height}"):
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get(page.as_uri())
    yield driver
    driver.quit()


def find(browser, selector):
    return browser.find_elements("css selector", selector)


def traces(browser):
    """Names and numbers of points that the tissue shows."""
    return browser.execute_script("return $('tissue').data.map((trace) => [trace.name, trace.x.length])")


def test_everything_works_and_nothing_is_loaded(browser):
    errors = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert not errors
    assert browser.title == EVIL
    for name in ("trust-card", "tissue", "gene-select", "genes", "interactions"):
        assert len(find(browser, f"#{name}")) == 1
    # Clusters of the first slide, then the labels of the second.
    assert sum(n for _, n in traces(browser)) == 72
    find(browser, "#tabs button")[1].click()
    assert find(browser, "#tabs button")[1].get_attribute("aria-selected") == "true"
    find(browser, "#color-select option[value=label]")[0].click()
    assert {name for name, _ in traces(browser)} == {EVIL, "plain"}
    # A gene from the table: measured beside predicted; then one alone, from the list.
    find(browser, "#gene-search")[0].send_keys("col1")
    assert [cell.text for cell in find(browser, "#genes tbody td:first-child")] == ["COL1A1"]
    find(browser, "#genes tbody button")[0].click()
    assert traces(browser) == [["measured", 72], ["predicted", 72]]
    assert find(browser, "#note")[0].text.startswith("COL1A1: r beyond depth")
    assert find(browser, "#gene-select")[0].get_attribute("value") == "COL1A1"
    find(browser, "#view-select option[value=predicted]")[0].click()
    find(browser, "#gene-select option[value=KRT8]")[0].click()
    assert traces(browser) == [["predicted", 72]]
    # Tables sort both ways.
    find(browser, "#gene-search")[0].clear()
    find(browser, "#gene-search")[0].send_keys(" ")
    head = find(browser, "#genes thead button")[2]
    columns = []
    for _ in range(2):
        browser.execute_script("arguments[0].click()", head)
        cells = find(browser, "#genes tbody td:nth-child(3)")
        columns.append([float(cell.get_attribute("textContent")) for cell in cells])
    assert columns[0] == sorted(columns[0], reverse=True) == columns[1][::-1]
    # A pair from its table, on the tissue.
    find(browser, "#interactions tbody button")[1].click()
    assert find(browser, "#note")[0].text.startswith("CSF1 → CSF1R: E")
    assert len(browser.execute_script("return $('lollipop').data[0].x")) == 2
    # No wider than the window, nothing loaded, nothing run that a name brought.
    assert browser.execute_script("return document.documentElement.scrollWidth - window.innerWidth") <= 0
    requests = [
        entry["message"] for entry in browser.get_log("performance") if 'requestWillBeSent"' in entry["message"]
    ]
    assert all('"url":"file:' in request or '"url":"data:' in request for request in requests)
    assert browser.title == EVIL
    assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
