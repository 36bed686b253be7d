// The worker that lays out the map, so that the page follows a finger meanwhile.

import { place } from "./layout.js";

addEventListener("message", ({ data }) => {
  const { x, y } = place(data);
  postMessage({ x, y }, [x.buffer, y.buffer]);
});
