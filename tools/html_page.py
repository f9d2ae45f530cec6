"""HTML pages with data, style and script in them, which ask no network for anything."""

import base64
import hashlib
import json
import os
import re
from pathlib import Path

from system.output_files import atomic_file, check_can_write, check_is_no_input

PAGE_FOLDER = Path(__file__).resolve().parent


def add_output_flag(parser):
    """Adds -o to the flags of a tool."""
    parser.add_argument("-o", "--output", required=True, metavar="HTML", help="the page to write")


def check_output(output, inputs):
    """Raises UserError if the page cannot be written, or is one of the input files; an input may be None."""
    check_can_write("--output", output)
    check_is_no_input(output, filter(None, inputs))


def write_page(path, script_name, data, data_file, prediction_file):
    """Writes the page of `data`, which JSON can hold, shown by page.js and the script of that name."""
    names = {"data_file": os.path.basename(data_file), "prediction_file": os.path.basename(prediction_file)}
    page = make_page("page.html", ["elements.js", "page.js", script_name], data | names)
    with atomic_file(path, "w", encoding="utf-8") as file:
        file.write(page)


def make_page(template_name, script_names, data, connect="'none'"):
    """Returns a page from the files of these names, with `data`, which JSON can hold. Its script may ask `connect`.

    No text of the data can end the element that it is in, and no other script can run.
    """
    template, style, *scripts = (
        (PAGE_FOLDER / name).read_text() for name in (template_name, "page.css", *script_names)
    )
    script = "\n".join(scripts)
    policy = f"default-src 'none'; style-src '{csp_hash(style)}'; script-src '{csp_hash(script)}'; "
    policy += f"connect-src {connect}; base-uri 'none'; form-action 'none'"
    # As ASCII: a JSON string may hold halves of surrogate pairs, which no encoding has.
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"@POLICY@": policy, "@STYLE@": style, "@SCRIPT@": script, "@DATA@": text}
    return re.sub(r"@[A-Z]+@", lambda match: parts[match[0]], template)


def csp_hash(text):
    """The source expression by which a Content-Security-Policy allows this one inline element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
