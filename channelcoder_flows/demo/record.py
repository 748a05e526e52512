"""Makes the picture in the README from a real run: `python -m channelcoder_flows.demo.record docs/demo.svg`."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console

from channelcoder_flows.demo.screen import WIDTH, Screen
from channelcoder_flows.demo.show import show

_FONTS = re.compile(r"@font-face \{\{.*?\}\}\s*", re.DOTALL)
# Nothing is loaded from elsewhere, and indents are kept by every program that draws SVG.
FORMAT = _FONTS.sub("", CONSOLE_SVG_FORMAT).replace("<svg ", '<svg xml:space="preserve" ', 1)


def main(path: Path) -> None:
    """Play the demo, and write what was shown."""
    console = Console(record=True, force_terminal=True, color_system="truecolor", width=WIDTH)
    asyncio.run(show(Screen(console, program="channelcoder", spin=False)))
    svg = console.export_svg(title="make demo", code_format=FORMAT)
    path.write_text(svg, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
