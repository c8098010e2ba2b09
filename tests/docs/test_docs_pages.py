"""The documentation is whole: every page is found, every link leads somewhere, every name and command is there."""

import posixpath
import re

import pytest
import typer.main
from docs_pages import CHECKOUT, DOCS, all_pages, blocks, name_of, toctrees
from fine_tuned import CAID, labels, save, with_head
from PIL import Image
from zoo_site import cards, pages

import zoo
from zoo.cli import app
from zoo.commands.phantom import chest_phantom

COMMANDS = typer.main.get_command(app).commands
OF_TYPER = {"--help"}


def test_every_page_is_in_one_table_of_contents():
    """A page in none is found by search alone, a name without a page stops the build."""
    listed = [name for path, text in all_pages().items() for name in toctrees(path, text)]
    assert sorted(listed) == sorted(name_of(path) for path in all_pages() if path != "index.md")


def heads(text):
    """Anchors of a page's headings, as links name them."""
    words = re.findall(r"^#{1,3} (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", word.lower()).replace(" ", "-") for word in words}


@pytest.mark.parametrize("path", sorted(all_pages()))
def test_links_and_pictures_lead_somewhere(path):
    """To a page of the site, with the heading that is named, or to a file of the checkout."""
    text = re.sub(r"^```(?!\{).*?^```", "", all_pages()[path], flags=re.MULTILINE | re.DOTALL)
    targets = [t for t in re.findall(r"\]\(<?([^)>\s]+)>?\)", text) if not re.match(r"https?:|mailto:", t)]
    targets += re.findall(r'href="([^":]+)"', text)
    for target in targets:
        file, _, anchor = target.partition("#")
        where = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
        page = re.sub(r"\.html$", ".md", where)
        assert page in all_pages() or (DOCS / where).is_file(), f"{path} links to {target}"
        if anchor and "=" not in anchor:
            assert anchor in heads(all_pages()[page]), f"{path} links to {target}, which has no such heading"


@pytest.mark.parametrize("name", zoo.__all__)
def test_every_public_name_is_in_the_reference(name):
    """By a directive that writes its docstring; a module by one of its own, or by what is documented of it."""
    text = all_pages()["reference/api.md"]
    assert re.search(rf"^\.\. (auto)?(function|class|module|data):: zoo\.{name}$", text, re.MULTILINE), (
        f"zoo.{name} is public: add it to docs/reference/api.md"
    )


def test_the_reference_shows_nothing_that_is_not_there():
    for path in re.findall(r"^\.\. auto\w+:: (\S+)$", all_pages()["reference/api.md"], re.MULTILINE):
        module, _, name = path.rpartition(".")
        owner = __import__(module, fromlist=[name])
        assert hasattr(owner, name) or __import__(path, fromlist=["_"]), path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_reference_with_its_options(name):
    """Also `zoo finetune`, whose options typer does not know: there its own help stands."""
    text = all_pages()["reference/commands.md"]
    part = re.search(rf"^## `zoo {name}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)[1]
    flags = {flag for p in COMMANDS[name].params for flag in p.opts if flag.startswith("--")}
    assert flags or "--help" in part
    assert all(flag in part for flag in flags)
    if name == "finetune":
        assert {"--task", "--table", "--group", "--pair", "--resume"} <= set(re.findall(r"--[\w-]+", part))
        assert "usage: zoo finetune" in part


def shown():
    """Lines that the pages show with `zoo`, each with its page."""
    for path, text in all_pages().items():
        if path.startswith(("cards/", "weights/", "reference/")):
            continue
        cells = re.findall(r'^# %% language="bash"\n((?:# .*\n)+)', text, re.MULTILINE)
        consoles = [*blocks(text, "console"), *(re.sub(r"^# ", "", cell, flags=re.MULTILINE) for cell in cells)]
        for console in consoles:
            for line in re.sub(r"\\\n", " ", console).splitlines():
                if found := re.search(r"(?<![/\w])zoo ([a-z]+)\b((?: [^#|]*)?)", line.split("#")[0]):
                    yield path, found[1], set(re.findall(r"(?<= )--[\w-]+", found[2]))


@pytest.mark.parametrize(("path", "command", "flags"), list(shown()))
def test_commands_that_are_shown_take_these_options(path, command, flags):
    assert command in COMMANDS, f"{path} shows zoo {command}"
    part = re.search(rf"^## `zoo {command}`\n(.*?)(?=^## |\Z)", all_pages()["reference/commands.md"], re.M | re.DOTALL)[
        1
    ]
    assert flags <= set(re.findall(r"--[\w-]+", part)) | OF_TYPER, f"{path} shows zoo {command} {' '.join(flags)}"


@pytest.mark.slow
def test_programs_that_are_shown_run(tmp_path, monkeypatch):
    """Those of the start page and the guides, with the files that they look for."""
    chest = Image.fromarray(chest_phantom())
    (tmp_path / "films").mkdir()
    for place in ("chest.png", "films/chest.png"):
        chest.save(tmp_path / place)
    save(with_head(CAID, ["pneumonia"]), tmp_path / "run", CAID, labels(0.5), ["pneumonia"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_OFFLINE", "1")
    import torch

    torch.save(zoo.load_model(CAID).state_dict(), "best_checkpoint.pth")
    zoo.embedding.embed_cohort(zoo.Embedder(CAID), zoo.embedding.find_cases(["films"], volumes=False), "features")
    ran = 0
    for path in sorted(path for path in all_pages() if path == "index.md" or path.startswith("guides/")):
        session = {}
        for block in blocks(all_pages()[path], "python"):
            exec(compile(block, path, "exec"), session)
            ran += 1
        if path == "index.md":
            assert session["features"].shape == (1, 2048)
    assert ran >= 5


def test_a_card_is_written_with_all_that_is_in_its_home():
    """Only targets of links differ."""
    for path, text in cards.pages().items():
        if path == "cards/index.md":
            continue
        home = cards.card(path.removeprefix("cards/").removesuffix(".md")).read_text("utf-8")
        assert re.sub(r"\]\([^)]*\)", "]()", text) == re.sub(r"\]\([^)]*\)", "]()", home)


def test_a_heading_in_a_block_of_code_is_no_section():
    text = "# Card\n\n## One\n\n```\n# no heading\n## nor this\n```\n\nmore\n\n### Deeper\n\nwords\n\n## Two\n\nend\n"
    found = {section.heading: section.body for section in cards.sections(text)}
    assert list(found) == ["Card", "One", "Deeper", "Two"]
    assert found["One"].endswith("words")
    assert "more" in found["One"]


def test_pages_that_are_no_longer_made_are_removed(tmp_path, monkeypatch):
    """A page of weights that left the manifest would stay in the site for ever; nothing else is touched."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "gone.tag.md").write_text("# gone")
    (tmp_path / "mine.md").write_text("# mine")
    monkeypatch.setattr(pages, "made", lambda: {"weights/new.tag.md": "# new", "catalogue.md": "# all"})
    pages.write(tmp_path)
    found = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.md"))
    assert found == ["catalogue.md", "mine.md", "weights/new.tag.md"]


def test_notebooks_are_walked_offline_and_name_their_kernel():
    """Each is a percent file that draws its images: an address, or an install, would need a connection."""
    found = sorted(DOCS.glob("notebooks/*.py"))
    assert len(found) >= 5
    for file in found:
        text = file.read_text("utf-8")
        compile(text, file.name, "exec")
        assert "name: python3" in text
        assert "**drawn**" in text.casefold() or "package" in text
        assert not re.search(r"https?://|pip install", text), file.name


def test_what_is_made_is_not_committed():
    """`git add` of a built checkout takes none of it."""
    ignored = (CHECKOUT / ".gitignore").read_text("utf-8").splitlines()
    for path in pages.made():
        folder = path.split("/")[0]
        assert f"/docs/{path}" in ignored or f"/docs/{folder}/" in ignored
