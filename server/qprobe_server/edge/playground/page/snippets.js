// Writes a request down for a shell and for Python. The key is read from the environment there.

import { apiUrl } from "./api.js";

export function writeCurl(request) {
  const body = JSON.stringify(request, null, 2).replaceAll("'", "'\\''");
  return [
    `curl -s '${apiUrl("v1/chat/completions").replaceAll("'", "%27")}'`,
    '-H "Authorization: Bearer $OPENAI_API_KEY"',
    "-H 'Content-Type: application/json'",
    `-d '${body}'\n`,
  ].join(" \\\n  ");
}

export function writePython({ q_probe, ...request }) {
  const named = { ...request, extra_body: { q_probe } };
  const lines = Object.entries(named).map(([name, value]) => `    ${name}=${literal(value, 4)},`);
  return `import os

from openai import OpenAI

client = OpenAI(base_url=${literal(apiUrl("v1"), 0)}, api_key=os.environ["OPENAI_API_KEY"])
answer = client.chat.completions.create(
${lines.join("\n")}
)
print(answer.choices[0].message.content)
result = answer.q_probe["results"][0]
print(result["selected"], result["scores"])
`;
}

function literal(value, indent) {
  if (value === true) return "True";
  if (value === false) return "False";
  if (value === null) return "None";
  // What JSON writes for strings and finite numbers Python reads as the same.
  if (typeof value !== "object") return JSON.stringify(value);
  const inner = indent + 4;
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, inner))
    : Object.entries(value).map(([name, item]) => `${JSON.stringify(name)}: ${literal(item, inner)}`);
  const flat = `${open}${items.join(", ")}${close}`;
  if (flat.length < 80 && !flat.includes("\n")) return flat;
  const space = " ".repeat(inner);
  return `${open}\n${items.map((item) => `${space}${item},\n`).join("")}${" ".repeat(indent)}${close}`;
}
