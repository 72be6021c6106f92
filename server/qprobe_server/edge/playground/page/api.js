// Asks the server that the page came from. Every failure becomes an ApiError with a sentence to show.

/** `status` is 0 where there was no answer; `param` is the field that the server complains of. */
export class ApiError extends Error {
  constructor(message, { status = 0, param = null } = {}) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

/** Relative to the page, so that a root path in front of both stays. */
export const apiUrl = (path) => new URL(path, document.baseURI).href;

/**
 * Return the JSON of a reply: GET, or POST if there is a body.
 *
 * Throws ApiError, and the signal's AbortError as it is.
 */
export async function ask(path, { key, body, signal } = {}) {
  const headers = {};
  if (body !== undefined) headers["content-type"] = "application/json";
  if (key) headers.authorization = `Bearer ${readKey(key)}`;
  let response;
  let text;
  try {
    response = await fetch(apiUrl(path), {
      method: body === undefined ? "GET" : "POST",
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "same-origin",
    });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    const { origin } = new URL(document.baseURI);
    throw new ApiError(`The server at ${origin} cannot be reached. Is it still running?`);
  }
  const reply = parse(text);
  if (response.ok && reply !== null) return reply;
  throw explain(response, reply, Boolean(key));
}

function readKey(key) {
  // Others cannot stand in a header: fetch would fail as if there were no server.
  if (/^[\x21-\x7e]+$/.test(key)) return key;
  throw new ApiError("The API key has a character that no key can have, such as a space.", { status: 401 });
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

function explain(response, reply, hadKey) {
  const { status } = response;
  if (status === 401) {
    const message = hadKey
      ? "The server refused the API key."
      : "The server wants an API key: type it in the field at the top.";
    return new ApiError(message, { status });
  }
  const error = reply?.error ?? reply?.detail ?? reply;
  const message = typeof error === "string" ? error : error?.message;
  const unclear = response.ok ? "The server's reply is not JSON." : `The server answered ${status} without a reason.`;
  return new ApiError(typeof message === "string" && message ? message : unclear, {
    status,
    param: typeof error?.param === "string" ? error.param : null,
  });
}
