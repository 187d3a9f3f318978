"""The site of docs/ builds in strict mode and needs no network; links of pages have targets."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr  # a broken link or anchor, or an absent docstring
    return folder


def test_every_page_is_there_and_in_the_navigation(site):
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}
    assert {path.stem for path in site.glob("*.html")} - {"404"} == pages
    start = (site / "start.html").read_text()
    assert all(f'href="{page}.html"' in start for page in pages - {"start"})


def test_it_opens_without_a_network(site):
    for page in site.glob("*.html"):
        loaded = re.findall(r'<(?:script|img)[^>]* src="([^"]*)"', page.read_text())
        loaded += re.findall(
            r'<link[^>]* rel="(?:stylesheet|icon|preload)"[^>]*>', page.read_text()
        )
        assert loaded and not [x for x in loaded if "//" in x.replace("data:", "")], page


def test_links_out_of_the_site_lead_to_the_repositorys_files(site):
    found = set()
    for page in site.glob("*.html"):
        found |= set(re.findall(r'href="\.\./([^"#]+)', page.read_text()))
    assert {"README.md", "examples/slurm/train.sbatch"} <= found
    assert [x for x in found if not (ROOT / x).exists()] == []


def test_the_api_has_what_the_package_gives(site):
    import dpk_det

    page = (site / "api.html").read_text()
    names = set(dpk_det.__all__) - {"__version__"}
    assert names and all(f'id="dpk_det.{name}"' in page for name in names)


# ------------------------------------------------------------------ pages on their own


def test_every_link_of_a_page_has_a_target():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
    pages += [*(ROOT / "docs").glob("*.md"), *(ROOT / "examples").rglob("*.md")]
    for page in pages:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if re.match(r"[a-z]+:", target):
                continue
            path, _, anchor = target.partition("#")
            file = (page.parent / path).resolve() if path else page
            assert file.exists(), f"{page.name} links to {target}"
            if anchor and file.suffix == ".md":
                assert anchor in anchors(file.read_text()), f"{page.name} links to {target}"


def anchors(text):
    """Of named places and, as GitHub makes them, of headings."""
    found = set(re.findall(r'<a name="([^"]+)"', text))
    for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE):
        plain = re.sub(r"[^\w\- ]", "", heading.lower())
        found.add(plain.replace(" ", "-"))
    return found


def test_the_readme_fits_on_a_screen():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 110 and len(text.split()) <= 900
