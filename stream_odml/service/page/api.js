// Calls to the service this page came from: the token, the errors, pictures that need the token too.

import { $ } from "./dom.js";

const KEY = "stream_odml.token";
let asking = null;

export class ApiError extends Error {
  constructor(status, body) {
    super(body.remedy ? `${body.detail}; ${body.remedy}` : body.detail);
    this.status = status;
    this.code = body.error;
  }
}

export async function call(path, options = {}) {
  const response = await send(path, options);
  if (response.ok) return response.json();
  const body = await response.json().catch(() => ({ error: "unknown", detail: response.statusText }));
  throw new ApiError(response.status, body);
}

/** The response, whatever its status; asks for the token where there is none or a wrong one. */
export async function send(path, options) {
  for (;;) {
    const token = sessionStorage.getItem(KEY);
    const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.status !== 401) return response;
    if (token === sessionStorage.getItem(KEY)) sessionStorage.removeItem(KEY);
    await (asking ??= askToken());
  }
}

function askToken() {
  const dialog = $("token-dialog");
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, $("token").value);
      $("token").value = "";
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
}

/** The picture of an item as a Blob, or null. */
export async function picture(id) {
  const response = await send(thumbnailPath(id), {});
  return response.ok ? response.blob() : null;
}

/** Fill `img` with the picture of an item; where there is none, `instead` runs. */
export async function show(img, id, instead) {
  img.addEventListener("error", instead, { once: true });
  if (!sessionStorage.getItem(KEY)) {
    img.src = thumbnailPath(id);
    return;
  }
  const blob = await picture(id);
  if (blob === null) return instead();
  img.addEventListener("load", () => URL.revokeObjectURL(img.src), { once: true });
  img.src = URL.createObjectURL(blob);
}

const thumbnailPath = (id) => `/v1/items/${encodeURIComponent(id)}/thumbnail`;
