// How these programs print: a line of JSON for each thing that happens, at once.
"use strict";
const fs = require("node:fs");

const QUESTION = "Why is the sky blue?";
const ENDLESS = 1e9; // tokens of output, which no budget pays for
const WEATHER = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

function say(call, text, more = {}) {
  const line = JSON.stringify({ call, text: text ?? null, at: performance.now() / 1000, ...more });
  fs.writeSync(1, line + "\n");
}

function weather(given) {
  const { city } = typeof given === "string" ? JSON.parse(given) : given;
  return `It rains in ${city}.`;
}

module.exports = { ENDLESS, QUESTION, WEATHER, say, weather };
