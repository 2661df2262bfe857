// A program with npm's openai, as anyone writes it.
"use strict";
const OpenAI = require("openai");
const { ENDLESS, QUESTION, WEATHER, say, weather } = require("./say.cjs");

const tools = [{ type: "function", function: { name: "weather", description: "The weather of a city.", parameters: WEATHER } }];
const asked = (text, more = {}) => ({
  model: "house-small", messages: [{ role: "user", content: text }], max_tokens: 60, ...more,
});

async function main() {
  const client = new OpenAI();
  const chat = (request) => client.chat.completions.create(request);
  const several = Array.from({ length: 8 }, (_, number) => chat(asked(`${QUESTION} ${number}`)));
  for (const answer of await Promise.all(several)) say("chat", answer.choices[0].message.content);
  for (const way of ["stall", "slow"])
    for await (const chunk of await chat(asked(`[${way}] ${QUESTION}`, { stream: true })))
      say(`${way} chat`, chunk.choices[0].delta.content);
  const request = asked("[call-tool] What is the weather in Paris?", { tools });
  let message;
  while ((message = (await chat(request)).choices[0].message).tool_calls) {
    const call = message.tool_calls[0];
    request.messages.push(message, { role: "tool", tool_call_id: call.id, content: weather(call.function.arguments) });
  }
  say("tool", message.content);
  say("responses", (await client.responses.create({ model: "house-large", input: QUESTION })).output_text);
  for (const way of ["stall", "slow"]) {
    const stream = await client.responses.create({ model: "house-large", input: `[${way}] ${QUESTION}`, stream: true });
    for await (const event of stream)
      say(`${way} responses`, event.type === "response.output_text.delta" ? event.delta : null);
  }
  const embedded = await client.embeddings.create({ model: "house-embed", input: ["The sky", "is blue"] });
  say("embeddings", embedded.data.map((each) => each.embedding));
  say("models", (await client.models.list()).data.length);
  for (const more of [{}, { stream: true }])
    try {
      await chat(asked(QUESTION, { ...more, max_tokens: ENDLESS }));
    } catch (error) {
      say(`refused ${more.stream ? "streamed" : "chat"}`, error.message, { status: error.status });
    }
}

main();
