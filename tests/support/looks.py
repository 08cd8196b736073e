"""What can be measured of how a page looks: its width, broken words, and what axe-core finds."""

from importlib.resources import files
from typing import Any

from tests.support.browser import Page

AXE = files("axe_core_python").joinpath("axe.min.js")
WIDTHS = (390, 768, 1440)
#: The levels A and AA of WCAG 2.1.
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa")
#: Words that lie in more than one line. What has no place to break, as a setting's long name, and is longer may break.
_BROKEN = """(() => {
  const found = [], walker = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (walker.nextNode()) {
    const node = walker.currentNode;
    for (const word of node.data.matchAll(/[\\p{Script=Latin}\\p{N}_.]+/gu)) {
      if (word[0].length > 24) continue;
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const lines = new Set([...range.getClientRects()].filter((box) => box.width).map((box) => Math.round(box.top)));
      if (lines.size > 1) found.push(word[0]);
    }
  }
  return found;
})()"""
_AXE = """axe.run(document, {runOnly: %s, resultTypes: ["violations"]}).then((said) => said.violations.flatMap(
  (each) => each.nodes.map((node) => `${each.id}: ${node.target} ${node.failureSummary.split("\\n")[1]}`)))"""


async def overflow(tab: Page) -> int:
    """Pixels by which a page is wider than its window."""
    return int(await tab.value("document.documentElement.scrollWidth - innerWidth"))


async def broken_words(tab: Page) -> list[str]:
    """Words of up to 24 letters that the page breaks in two."""
    return list(await tab.value(_BROKEN))


async def violations(tab: Page) -> list[str]:
    """What axe-core finds: the rule, the element, what is wrong with it."""
    # The page's own policy lets no script in; a tool of the browser's is none of the page's.
    if not await tab.value("'axe' in window"):
        await tab.value(AXE.read_text("utf-8") + "; 1")
    found: Any = await tab.value(_AXE % list(RULES))
    return list(found)
