"""Read the built documentation as a visitor does, in headless Chromium.

Run as ``python .ci/browser.py HTML SCREENSHOTS``. Each page must load without errors
and have no dead link within the site. Those that visitors see first must be no wider
than the window of a phone or a laptop. What visitors search for must be found.
"""

import functools
import http.server
import sys
import threading
from pathlib import Path
from shutil import which
from urllib.parse import unquote, urljoin, urlparse

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WIDTHS = {"phone": 390, "laptop": 1280}
PAGES = ["index.html", "getting_started.html", "guide.html", "theory.html", "api.html"]
PHOTOGRAPHED = ["index.html", "getting_started.html"]
# What is searched for, and a page that has to be among the results.
SEARCHES = {
    "sparse": "tables",
    "imputation": "tables",
    "multilabel": "tables",
    "class_weight": "tables",
    "checkpoint": "long_fits",
    "resume": "long_fits",
    "DataLoader": "large_data",
    "memmap": "large_data",
    "xgboost": "teachers",
    "quantile": "intervals",
    "onnx": "deployment",
    "FAQ": "faq",
    "AutoGluon": "comparison",
    "model card": "deployment",
    "imbalance": "tables",
    "GridSearchCV": "searches",
    "sequences": "images",
}


def serve(folder):
    """Address of a server of a folder, in a thread of its own."""
    handler = functools.partial(
        type(
            "Quiet",
            (http.server.SimpleHTTPRequestHandler,),
            {"log_message": lambda *_: None},
        ),
        directory=str(folder),
    )
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def browser():
    options = Options()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    # Found here, since selenium would look for one on the net.
    return webdriver.Chrome(options=options, service=Service(which("chromedriver")))


def resize(driver, width):
    """Set the width of the page; a window could not be as narrow as a phone."""
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )


def dead_links(driver, folder, home):
    """Links of the page that lead nowhere within the site."""
    found = []
    for link in driver.find_elements(By.CSS_SELECTOR, "a[href]"):
        target = urljoin(driver.current_url, link.get_attribute("href"))
        if target.startswith(home):
            path = folder / unquote(urlparse(target).path).lstrip("/")
            if not (path.is_file() or (path / "index.html").is_file()):
                found.append(target)
    return found


def has_result(expected, driver):
    """Whether a page is among the results of a search so far."""
    links = driver.find_elements(By.CSS_SELECTOR, "#search-results li a")
    return any(f"/{expected}.html" in link.get_attribute("href") for link in links)


def check(folder, screenshots):
    """Problems, one line for each."""
    problems = []
    home = serve(folder)
    driver = browser()
    try:
        for name, width in WIDTHS.items():
            resize(driver, width)
            for page in PAGES:
                driver.get(home + page)
                wide = driver.execute_script(
                    "return document.documentElement.scrollWidth - window.innerWidth"
                )
                if wide > 1:
                    problems.append(f"{page}: {wide} pixels too wide for a {name}")
                if page == "index.html" and name == "laptop":
                    problems += [
                        f"{page}: a block of code is cut off on a {name}"
                        for block in driver.find_elements(By.CSS_SELECTOR, "pre")
                        if block.get_property("scrollWidth")
                        > block.get_property("clientWidth")
                    ]
                if page in PHOTOGRAPHED:
                    driver.save_screenshot(
                        str(screenshots / f"{Path(page).stem}_{name}.png")
                    )
        for page in sorted(folder.glob("*.html")):
            driver.get(home + page.name)
            problems += [
                f"{page.name}: dead link {link}"
                for link in dead_links(driver, folder, home)
            ]
            problems += [
                f"{page.name}: {entry['message']}"
                for entry in driver.get_log("browser")
                if entry["level"] == "SEVERE" and home in entry["message"]
            ]
        for word, expected in SEARCHES.items():
            driver.get(f"{home}search.html?q={word}")
            try:
                WebDriverWait(driver, 10).until(functools.partial(has_result, expected))
            except TimeoutException:
                problems.append(f"search for {word!r} does not find {expected}.html")
    finally:
        driver.quit()
    return problems


if __name__ == "__main__":
    folder, screenshots = map(Path, sys.argv[1:])
    screenshots.mkdir(parents=True, exist_ok=True)
    found = check(folder.resolve(), screenshots)
    print("\n".join(found) or "no problems")
    sys.exit(bool(found))
