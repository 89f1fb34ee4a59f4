"""How the documentation is built: ``python -m sphinx -W --keep-going docs docs/_build``."""

import ast
import os
import re
import sys
from pathlib import Path

from docutils import nodes
from sphinx_gallery.sorting import ExplicitOrder

import deepinv_jitter

sys.path.insert(0, str(Path(__file__).parent))
from inventories import offline

project = "deepinv_jitter"
author = "the deepinv_jitter developers"
copyright = f"2026, {author}"
version = release = deepinv_jitter.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.viewcode",
    "sphinxcontrib.bibtex",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
    "myst_parser",
]
exclude_patterns = ["_build", "results/cpu/runs", "results/cpu/weights"]
templates_path = ["_templates"]
nitpicky = True
default_role = "code"
# deepinv's separator between the parameters and the examples of a docstring
rst_prolog = ".. |sep| raw:: html\n\n   <hr>\n"

# Markdown pages: equations between dollars, and links to headings
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # the docstrings give types, with shapes
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # the host's own are on its pages
bibtex_bibfiles = ["references.bib"]

PAGES = {
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "deepinv": "https://deepinv.github.io/deepinv/",
}
intersphinx_mapping = {name: (page, (None, offline(name))) for name, page in PAGES.items()}
intersphinx_timeout = 10

# The chapters of the gallery and their demos, in the order in which to read them. Every folder of
# the examples with a README.rst is one; files that do not begin with demo_ are command lines and
# stay out of it.
os.environ.setdefault("OMP_NUM_THREADS", "2")
CHAPTERS = {
    "problems": ["points", "brain_mri", "seismic_deconvolution", "colour_deblurring", "tomography"],
    "models": ["jitter_your_model", "own_loop", "varnet_multicoil", "swap_denoiser"],
    "training": ["finetune_checkpoint", "choose_sigma", "stop_and_resume", "self_supervised"],
    "robustness": ["attack_and_report", "how_hard_an_attack_tries", "frontier"],
    "paper": [],
}
DEMOS = [f"demo_{name}.py" for names in CHAPTERS.values() for name in names]
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "subsection_order": ExplicitOrder([f"../examples/{name}" for name in CHAPTERS]),
    "within_subsection_order": ExplicitOrder([*DEMOS, "*"]),
    "filename_pattern": "/demo_",
    "ignore_pattern": r"(^|/)(?!demo_)[^/]+$",
    "backreferences_dir": "gallery/backreferences",
    "doc_module": ("deepinv_jitter",),
    "reference_url": {"deepinv_jitter": None},
    "abort_on_example_error": True,
    "remove_config_comments": True,
    "capture_repr": (),  # a figure is shown, and not named
    "show_memory": False,
    "write_computation_times": False,
    "download_all_examples": False,
    "nested_sections": False,
}

html_theme = "pydata_sphinx_theme"
html_title = project
html_logo = html_favicon = "_static/logo.svg"
# The address of the site, once it has one: with it, links that are posted show a picture
html_baseurl = os.environ.get("READTHEDOCS_CANONICAL_URL", "")
html_context = {
    "description": "Robust training of unrolled networks, as a plug-in to DeepInverse: SGD "
    "jittering, adversarial training, attacks, and reports of robustness.",
    "card_alt": "The logo of deepinv_jitter: a descent with jittered steps",
    "html_baseurl": html_baseurl,
}
html_sidebars = {"index": []}  # nothing to navigate in
html_static_path = ["_static"]
html_css_files = ["style.css"]
html_theme_options = {
    "logo": {"text": project, "alt_text": f"{project}: home"},
    "navbar_align": "left",
    "header_links_before_dropdown": 7,
    "show_toc_level": 2,
    # Not beside the gallery and the tables of results: code and columns need the width
    "secondary_sidebar_items": dict.fromkeys(["*", "api/*", "performance/**"], ["page-toc"]),
    "footer_start": ["copyright"],
    "footer_end": [],
}


def describe_thumbnails(app, doctree):
    """Sphinx-Gallery leaves thumbnails without an alternative text: say what they show."""
    for image in doctree.findall(nodes.image):
        name = re.search(r"sphx_glr_(?:demo_)?(\w+)_thumb", image["uri"])
        if name and not image.get("alt"):
            image["alt"] = f"A picture of the demo {name[1].replace('_', ' ')}"


def mark_sentences(app, doctree):
    """Browsers squeeze the text of a table to a word a line before it scrolls: say where it is."""
    for cell in doctree.findall(nodes.entry):
        if (length := len(cell.astext())) > 24:
            cell["classes"].append("sentence" if length < 100 else "passage")


def join_intervals(app, doctree):
    """A number and its interval stay on one line: 0.4 ± 0.1, 0.4 [0.3, 0.5]."""
    spaces = re.compile(r"(?<=\d) (?=±|\[\d)|(?<=±) (?=\d)|(?<=\d,) (?=[\d.]+\])")
    for text in list(doctree.findall(nodes.Text)):
        if not isinstance(text.parent, (nodes.literal, nodes.literal_block)):
            joined = nodes.Text(spaces.sub("\N{NO-BREAK SPACE}", text))
            text.parent.replace(text, joined)


def list_modules(app, docname, source):
    """The modules of the package from the ground up, each in the first line of its docstring."""
    package = Path(deepinv_jitter.__file__).parent
    rooms = re.findall(r"^- `(\w+)`", deepinv_jitter.__doc__, re.MULTILINE)
    targets, lines = [], [""]
    for room in rooms:
        for path in sorted((package / room).glob("*.py")) or [package / f"{room}.py"]:
            name = ".".join(path.relative_to(package.parent).with_suffix("").parts)
            name = name.removesuffix(".__init__")
            first = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
            targets.append(f".. py:module:: {name}")
            indent = "" if path.stem == "__init__" or path.parent == package else "  "
            # A list in a list needs empty lines around it
            lines += [f"{indent}- :mod:`~{name}`: {first}", ""]
    listing = "\n".join(["```{eval-rst}", *targets, *lines, "```"])
    source[0] = source[0].replace("<!-- list of modules -->", listing)


def setup(app):
    app.connect("source-read", list_modules)
    app.connect("doctree-read", describe_thumbnails)
    app.connect("doctree-read", mark_sentences)
    app.connect("doctree-read", join_intervals)
