// Returns the texts on the page whose contrast is below WCAG's AA, with the contrast. A canvas mixes
// the colours, since they may be given in any notation and with alpha.
() => {
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const paint = (colour) => {
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
  };
  const luminance = () => {
    const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].slice(0, 3).map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = { numTexts: 0, poor: [] };
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    const text = texts.currentNode.data.trim();
    if (!text || !element.checkVisibility() || element.closest("script, option, .visually-hidden")) continue;
    const style = getComputedStyle(element);
    const lineage = [];
    for (let each = element; each; each = each.parentElement) lineage.unshift(each);
    paint("white");
    for (const each of lineage) paint(getComputedStyle(each).backgroundColor);
    const back = luminance();
    paint(element instanceof SVGElement ? style.fill : style.color);
    const front = luminance();
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    found.numTexts += 1;
    if (contrast < 4.5) found.poor.push(`${text.slice(0, 30)}: ${contrast.toFixed(2)}`);
  }
  return found;
}
