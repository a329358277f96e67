"""Configuration of the documentation: ``sphinx-build -W -b html docs docs/_build``."""

import skbdistil

project = "skbdistil"
author = "The skbdistil developers"
copyright = f"2026, {author}"
version = release = skbdistil.__version__

# No intersphinx: the documentation is built without a network.
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
templates_path = ["_templates"]
# The gallery writes its own pages from this folder.
exclude_patterns = ["_build", "examples"]
# Without a role: emphasis. What other projects document cannot be linked.
default_role = "emphasis"

autosummary_generate = True
# The template of classes lists methods; torch modules would bring in all of theirs.
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"[/\\]plot_",
    "download_all_examples": False,
    "show_memory": False,
    "plot_gallery": "True",
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_title = f"skbdistil {release}"
html_theme_options = {"show_prev_next": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False
