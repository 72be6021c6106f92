// Makes elements. Children that are strings become text nodes: nothing is ever parsed as HTML.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Fill a <dl> with pairs of a term and what to say of it. */
export function fillFigures(list, pairs) {
  list.replaceChildren(
    ...pairs.map(([term, ...said]) => make("div", {}, make("dt", {}, term), make("dd", {}, ...said))),
  );
}
