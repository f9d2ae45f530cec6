"""One HTML file with data, style and script in it, which asks no network for anything."""

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
    """Writes the page of `data`, which JSON can hold, shown by page.js and the script of that name.

    No text of the data can end the element that it is in, and no other script can run.
    """
    names = {"data_file": os.path.basename(data_file), "prediction_file": os.path.basename(prediction_file)}
    template, style, core, script = (
        (PAGE_FOLDER / name).read_text() for name in ("page.html", "page.css", "page.js", script_name)
    )
    script = f"{core}\n{script}"
    policy = f"default-src 'none'; style-src '{csp_hash(style)}'; script-src '{csp_hash(script)}'; base-uri 'none'; "
    policy += "form-action 'none'"
    # As ASCII: a JSON string may hold halves of surrogate pairs, which no encoding has.
    text = json.dumps(data | names, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    parts = {"@POLICY@": policy, "@STYLE@": style, "@SCRIPT@": script, "@DATA@": text}
    with atomic_file(path, "w", encoding="utf-8") as file:
        file.write(re.sub(r"@[A-Z]+@", lambda match: parts[match[0]], template))


def csp_hash(text):
    """The source expression by which a Content-Security-Policy allows this one inline element."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
