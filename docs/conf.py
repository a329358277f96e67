"""Configuration of the documentation: ``sphinx-build -W -b html docs docs/_build``."""

import sys
import tempfile
from pathlib import Path

from sphinx_gallery.sorting import ExplicitOrder

import skbdistil

sys.path.insert(0, str(Path(__file__).parent))
import inventories

# Each about a decision, in the order in which a newcomer meets it.
GALLERY = [
    "plot_quickstart.py",
    "plot_stage_for_budget.py",
    "plot_widths.py",
    "plot_distil_table.py",
    "plot_mixed_table.py",
    "plot_tabular_teacher.py",
    "plot_unlabelled_rows.py",
    "plot_labels_only.py",
    "plot_image_views.py",
    "plot_text.py",
    "plot_several_outputs.py",
    "plot_accuracy_latency.py",
    "plot_early_exit.py",
    "plot_early_time.py",
    "plot_teacher_last.py",
    "plot_cascade.py",
    "plot_intervals.py",
    "plot_online.py",
    "plot_certificate.py",
    "plot_paper_figure.py",
    "plot_resume.py",
    "plot_deployment.py",
    "plot_precision.py",
    "*",
]

project = "skbdistil"
author = "The skbdistil developers"
copyright = f"2026, {author}"
version = release = skbdistil.__version__

# The documentation is built and read without a network: formulas and the inventories of
# other projects are part of it.
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx-mathjax-offline",
    "numpydoc",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
]
intersphinx_mapping = inventories.write(Path(tempfile.mkdtemp()))
templates_path = ["_templates"]
# The gallery writes its own pages from this folder.
exclude_patterns = ["_build", "examples"]
# Outputs and prompts are not copied.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
# Without a role: emphasis.
default_role = "emphasis"

autosummary_generate = True
# The template of classes lists methods; torch modules would bring in all of theirs.
numpydoc_show_class_members = False

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "within_subsection_order": ExplicitOrder(GALLERY),
    # For the links to examples on the pages of the API.
    "doc_module": ("skbdistil",),
    "backreferences_dir": "api/generated/backreferences",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"[/\\]plot_",
    "download_all_examples": False,
    "show_memory": False,
    # Its page needs a script that is not there.
    "write_computation_times": False,
    "plot_gallery": "True",
    "abort_on_example_error": True,
}

html_theme = "pydata_sphinx_theme"
html_title = f"skbdistil {release}"
html_theme_options = {
    "show_prev_next": False,
    "secondary_sidebar_items": ["page-toc"],
    # All parts of the documentation are named; none is behind "More".
    "header_links_before_dropdown": 7,
}
# Pages without others below them have nothing to list beside the text.
html_sidebars = {"index": [], "getting_started": [], "theory": []}
html_static_path = ["_static"]
html_favicon = "_static/favicon.svg"
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
