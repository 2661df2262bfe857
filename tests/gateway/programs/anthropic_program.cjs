// A program with @anthropic-ai/sdk, as anyone writes it.
"use strict";
const Anthropic = require("@anthropic-ai/sdk");
const { ENDLESS, QUESTION, WEATHER, say, weather } = require("./say.cjs");

const tools = [{ name: "weather", description: "The weather of a city.", input_schema: WEATHER }];
const asked = (text, more = {}) => ({
  model: "house-large", messages: [{ role: "user", content: text }], max_tokens: 60, ...more,
});

async function main() {
  const client = new Anthropic({ timeout: 60_000 });
  const create = (request) => client.messages.create(request);
  const several = Array.from({ length: 8 }, (_, number) => create(asked(`${QUESTION} ${number}`)));
  for (const answer of await Promise.all(several)) say("messages", answer.content[0].text);
  for (const way of ["stall", "slow"])
    for await (const event of await create(asked(`[${way}] ${QUESTION}`, { stream: true })))
      say(`${way} messages`, event.type === "content_block_delta" ? event.delta.text : null);
  say("stream helper", await client.messages.stream(asked(QUESTION)).finalText());
  const request = asked("[call-tool] What is the weather in Paris?", { tools });
  let message;
  while ((message = await create(request)).stop_reason === "tool_use") {
    const use = message.content[0];
    const result = { type: "tool_result", tool_use_id: use.id, content: weather(use.input) };
    request.messages.push({ role: "assistant", content: message.content }, { role: "user", content: [result] });
  }
  say("tool", message.content[0].text);
  say("count_tokens", (await client.messages.countTokens({ model: "house-large", messages: request.messages })).input_tokens);
  for (const more of [{}, { stream: true }])
    try {
      await create(asked(QUESTION, { ...more, max_tokens: ENDLESS }));
    } catch (error) {
      say(`refused ${more.stream ? "streamed" : "messages"}`, error.message, { status: error.status });
    }
}

main();
