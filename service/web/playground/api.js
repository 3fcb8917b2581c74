// Every request of the page, with the key of this tab.

import { Problem } from "./problems.js";

const KEY = "fivecrop.key";

export const readKey = () => sessionStorage.getItem(KEY) || "";

export function keepKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

/** Returns the address of a path of this service, wherever it is mounted. */
export function address(path, query = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) url.searchParams.set(name, value);
  return url;
}

/** Returns the response, if it is a good one; else throws a Problem. */
export async function ask(path, { query, headers = {}, ...rest } = {}) {
  const key = readKey();
  if (key) headers.Authorization = `Bearer ${key}`;
  let response;
  try {
    response = await fetch(address(path, query), { headers, cache: "no-store", ...rest });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("unreachable", error.message);
  }
  if (response.ok) return response;
  const told = await response.json().catch(() => ({}));
  throw new Problem(
    told.code || "internal", told.detail || response.statusText,
    told.request_id || response.headers.get("x-request-id"), response.headers.get("retry-after"));
}

export const askJson = async (path, options) => (await ask(path, options)).json();

/** Returns {decode, queue, infer, total}, in milliseconds, as the service measured them. */
export function readTimings(response) {
  const header = response.headers.get("server-timing") || "";
  const parts = header.matchAll(/(\w+);dur=([\d.]+)/g);
  return Object.fromEntries([...parts].map(([, name, value]) => [name, Number(value)]));
}
