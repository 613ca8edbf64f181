"""How Sphinx makes the web site. `python start.py site` calls it."""

from docutils import nodes

from course.teaching.mathml import mathml

project = "Token by Token"
html_title = project
language = "en"
extensions = ["myst_nb"]

# The notebooks are shown as they were saved.
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath"]
myst_dmath_allow_space = False
myst_heading_anchors = 3

# Everything is a file of the site: no CDN, no web fonts, formulas as MathML.
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_use_index = False
html_show_copyright = False
html_permalinks_icon = "#"
pygments_style = "a11y-light"
pygments_dark_style = "a11y-dark"


def setup(app):
    def in_its_language(app, page, template, context, tree):
        if page.startswith("zh_CN/"):
            context["language"] = "zh-CN"

    app.connect("html-page-context", in_its_language)

    def inline(translator, node):
        translator.body.append(mathml(node.astext()))
        raise nodes.SkipNode

    def block(translator, node):
        formula = mathml(node.astext(), block=True)
        translator.body.append(f'<div class="formula">{formula}</div>\n')
        raise nodes.SkipNode

    app.add_html_math_renderer("mathml", (inline, None), (block, None))
