// A program without a library: node's own fetch. It knows the convention of OPENAI_BASE_URL, and nothing else.
"use strict";
const { ENDLESS, QUESTION, say } = require("./say.cjs");

const asked = (text, more = {}) => ({
  model: "house-small", messages: [{ role: "user", content: text }], max_tokens: 60, ...more,
});
const call = (request) =>
  fetch(`${process.env.OPENAI_BASE_URL}/chat/completions`, {
    method: "POST",
    headers: { authorization: `Bearer ${process.env.OPENAI_API_KEY}`, "content-type": "application/json" },
    body: JSON.stringify(request),
  });

async function main() {
  const several = Array.from({ length: 8 }, (_, number) => call(asked(`${QUESTION} ${number}`)));
  for (const response of await Promise.all(several)) say("chat", (await response.json()).choices[0].message.content);
  for (const way of ["stall", "slow"]) {
    const response = await call(asked(`[${way}] ${QUESTION}`, { stream: true }));
    const decoder = new TextDecoder();
    let rest = "";
    for await (const piece of response.body) {
      const lines = (rest + decoder.decode(piece, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines.filter((each) => each.startsWith("data: {")))
        say(`${way} chat`, JSON.parse(line.slice(6)).choices[0].delta.content);
    }
  }
  const response = await call(asked(QUESTION, { max_tokens: ENDLESS }));
  say("refused chat", (await response.json()).error.message, { status: response.status });
}

main();
