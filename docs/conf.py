"""Settings of the documentation, which `python -m sphinx -W -b html docs OUT` builds without connections."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]  # the zoo of this checkout, whichever is installed

from zoo.version import __version__  # noqa: E402

project = "medssl-zoo"
author = "the authors of medssl-zoo"
project_copyright = "the authors of medssl-zoo"
release = version = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "myst_nb",
    "sphinx_design",
    "zoo_site",
]
exclude_patterns = ["_build", "_ext", "conf.py"]
suppress_warnings = ["myst.strikethrough"]

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"  # a notebook runs again when its code was changed; a fresh folder runs all
nb_execution_timeout = 1200  # seconds for a cell; a whole notebook takes less than 60 of a quiet processor
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "medssl-zoo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("site.js", {"defer": "defer"})]
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
