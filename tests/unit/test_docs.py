"""The documents: links, file names and the glossary are true, README is short, GitHub reads the forms."""

import ast
import hashlib
import re
from pathlib import Path

import pytest
import yaml

from inner_guidance.tools.help_pictures import PICTURES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
HELP = sorted((ROOT / "web" / "docs").glob("*.md"))
REPOSITORY = (
    "https://github.com/inner-guidance/inner-guidance/blob/main/"  # the host's page opens no relative link
)
FORMS = sorted((ROOT / ".github").rglob("*.yml"))
LINK = re.compile(r"\]\(([^()\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
# Folders of the checkout that a name in a text begins with; others, such as models/, are the host's.
FOLDERS = tuple(
    f"{name}/"
    for name in (
        "benchmarks",
        "classifier_head",
        "demo",
        "depth_head",
        "docs",
        "experiments",
        "guidance",
        "host",
        "locales",
        "nodes",
        "pictures",
        "subgraphs",
        "tests",
        "tools",
        "web",
        "workflows",
    )
)
PLACEHOLDER = re.compile(r"[<>*]")


@pytest.fixture(params=PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def page(request):
    return request.param


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def is_file_name(text: str) -> bool:
    return text.startswith(FOLDERS) and not PLACEHOLDER.search(text) and " " not in text


def test_links_lead_somewhere(page):
    broken = []
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name.replace("%20", " ") if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)

    assert broken == []


def test_files_that_are_named_exist(page):
    named = [
        code.rstrip(":") for code in CODE.findall(page.read_text(encoding="utf-8")) if is_file_name(code)
    ]

    assert [name for name in named if not (ROOT / name).exists()] == []


def members() -> dict[str, str]:
    """The source of each class of the pack, by name."""
    found = {}
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            source = path.read_text(encoding="utf-8")
            classes = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef))
            found |= {node.name: ast.get_source_segment(source, node) for node in classes}
    return found


def test_members_of_classes_that_are_named_exist():
    """`Recorder.traced`: in the class itself."""
    sources = members()
    named = {
        (name, member)
        for page in PAGES
        for code in CODE.findall(page.read_text(encoding="utf-8"))
        for name, member in re.findall(r"^([A-Z]\w+)\.(\w+)$", code)
        if name in sources
    }

    assert len(named) > 2
    assert [(name, m) for name, m in named if not re.search(rf"\b{m}\b", sources[name])] == []


def test_scripts_are_called_by_the_python_that_setup_made():
    """Another one has none of their packages. Tables in docs/results/ quote the rest of the command."""
    pages = [page for page in PAGES if page.parent.name != "results"]
    calls = re.findall(r"(\S*)python -m tools", "".join(page.read_text(encoding="utf-8") for page in pages))

    assert len(calls) > 10
    assert {call.strip("`") for call in calls} == {".venv/bin/"}


def test_files_are_found_where_they_are_named():
    """Or the two tests above would pass for pages without a link."""
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)

    assert len(LINK.findall(text)) > 60
    assert len([code for code in CODE.findall(text) if is_file_name(code)]) > 60


@pytest.mark.parametrize("page", HELP, ids=lambda path: path.stem)
def test_help_page_says_how_to_connect_the_node_and_leads_to_papers_and_documents(page):
    text = page.read_text(encoding="utf-8")
    documents = [link.removeprefix(REPOSITORY) for link in LINK.findall(text) if link.startswith(REPOSITORY)]

    assert "\n## How to connect it\n\n1. " in text or "\n## How to connect it\n\n- " in text
    assert "arxiv.org/abs/2210.00939" in text
    assert "arxiv.org/abs/2212.08861" in text
    assert documents
    assert [name for name in documents if not (ROOT / name).exists()] == []
    pictures = [link for link in LINK.findall(text) if "://" not in link]
    (picture,) = pictures
    assert picture == f"{page.stem}.jpg" or page.stem not in PICTURES
    assert (page.parent / picture).is_file()


def glossary() -> list[tuple[str, str, str]]:
    """Word, meaning and file of each row."""
    _, text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split("\n## Glossary\n")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip() for cell in row) for row in rows]


def test_glossary_is_complete_and_sorted():
    words = [word.strip("`").lower() for word, _, _ in glossary()]

    assert len(words) > 50
    assert words == sorted(words)


@pytest.mark.parametrize(("word", "meaning", "file"), glossary(), ids=lambda cell: cell.strip("`")[:20])
def test_glossary_names_stand_in_their_file(word, meaning, file):
    names = [name for name in CODE.findall(word) + CODE.findall(meaning) if name.isidentifier()]
    source = (ROOT / file.strip("`")).read_text(encoding="utf-8")

    assert any(re.search(rf"\b{name}\b", source) for name in names)
    (own,) = CODE.findall(word) or [None]
    assert own is None or re.search(rf"^ *(class {own}\b|def {own}\b|{own}\b.* = )", source, re.MULTILINE)


def test_tables_of_earlier_weights_are_named():
    """By docs/results/README.md, and no others. Tables begin with the SHA-256 of what drew their images."""
    weights = [ROOT / "demo" / "weights" / f"{name}.safetensors" for name in ("unet", "transformer")]
    shipped = {hashlib.sha256(file.read_bytes()).hexdigest()[:12] for file in weights}
    current, earlier = set(), set()
    for path in (ROOT / "docs" / "results").glob("*_*.md"):
        checksums = {*re.findall(r"\b[0-9a-f]{12}\b", path.read_text(encoding="utf-8"))}
        if checksums:
            (current if checksums & shipped else earlier).add(path.name)
    readme = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
    (told,) = re.findall(r"These are still of an earlier UNet(?:.|\n)*?\n\n", readme)

    named = {*re.findall(r"`(\w+\.md)`", told)}
    assert earlier <= named
    assert not named & current
    assert len(current) > 15


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.name)
def test_github_reads_the_forms(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))

    assert content["name"]
    if form.parent.name == "ISSUE_TEMPLATE":
        assert content["description"]
        inputs = [field for field in content["body"] if field["type"] != "markdown"]
        assert len({field["id"] for field in inputs}) == len(inputs) > 2
        assert all(field["attributes"]["label"] for field in inputs)


def test_commits_are_checked_with_the_ruff_that_setup_installs():
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]

    assert repo["repo"] == "local"
    assert [hook["entry"].split()[:3] for hook in repo["hooks"]] == [[".venv/bin/python", "-m", "ruff"]] * 2


def test_make_test_runs_every_folder_of_tests_but_that_of_make_gpu_check(pytestconfig):
    folders = {str(path.parent.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py")}

    assert set(pytestconfig.getini("testpaths")) == folders - {"tests/gpu"}
