"""Settings of the documentation: python -m sphinx -W -b html docs site."""

import deepprop

project = "deepprop"
author = "the deepprop authors"
release = version = deepprop.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_heading_anchors = 3
default_role = "any_or_code"  # single backticks in docstrings: a link where the name is known
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings give shapes, which say more
napoleon_google_docstring = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "deepprop"
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]
html_copy_source = False
html_show_copyright = False
pygments_style = "friendly"
pygments_dark_style = "monokai"


def setup(app):
    """Make single backticks links to deepprop's names, and code where no such name exists."""
    from docutils import nodes
    from sphinx.domains.python import PyXRefRole

    role = PyXRefRole()
    public = set(deepprop.__all__)

    def any_or_code(name, rawtext, text, lineno, inliner, options=None, content=()):
        target = text.removeprefix("deepprop.").removeprefix("dp.").removesuffix("()")
        if target in public:
            raw = f":py:obj:`{text} <deepprop.{target}>`"
            return role("py:obj", raw, f"{text} <deepprop.{target}>", lineno, inliner)
        return [nodes.literal(rawtext, text)], []

    app.add_role("any_or_code", any_or_code)
